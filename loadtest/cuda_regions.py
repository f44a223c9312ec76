"""Inputs in the memory of an NVIDIA GPU that a server on this machine maps: cudaMalloc and an IPC handle.

Through libcudart, which Triton, torch and onnxruntime-gpu each bring along; no Python package of CUDA is needed.
"""

from __future__ import annotations

import base64
import ctypes
import ctypes.util
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from brim import layout
from brim.errors import NoResource
from loadtest.regions import SystemSegment

DEVICE = 0  # the first GPU that both see
HANDLE_BYTES = 64  # CUDA_IPC_HANDLE_SIZE
HOST_TO_DEVICE = 1  # cudaMemcpyHostToDevice


class Runtime(Protocol):
    """What is used of the CUDA runtime; NoResource in its own words where it fails."""

    def allocate(self, byte_size: int) -> int: ...

    def copy(self, data: bytes, pointer: int) -> None: ...

    def handle(self, pointer: int) -> bytes: ...

    def free(self, pointer: int) -> None: ...


class Library:
    """libcudart, loaded and found to answer for a GPU."""

    def __init__(self, path: str) -> None:
        """OSError if it is no such library, NoResource if it finds no GPU."""
        self._library: Any = ctypes.CDLL(path)
        self._library.cudaGetErrorString.restype = ctypes.c_char_p
        count = ctypes.c_int()
        self._call("cudaGetDeviceCount", ctypes.byref(count))
        self._call("cudaSetDevice", ctypes.c_int(DEVICE))

    def allocate(self, byte_size: int) -> int:
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(byte_size))
        assert pointer.value is not None  # cudaMalloc said that it went well
        return pointer.value

    def copy(self, data: bytes, pointer: int) -> None:
        self._call("cudaMemcpy", ctypes.c_void_p(pointer), data, ctypes.c_size_t(len(data)), HOST_TO_DEVICE)

    def handle(self, pointer: int) -> bytes:
        raw = ctypes.create_string_buffer(HANDLE_BYTES)
        self._call("cudaIpcGetMemHandle", raw, ctypes.c_void_p(pointer))
        return raw.raw

    def free(self, pointer: int) -> None:
        self._call("cudaFree", ctypes.c_void_p(pointer))

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            said = self._library.cudaGetErrorString(status).decode()
            raise NoResource(f"CUDA shared memory: {function} failed ({said}); use --transport shared-memory, or wire")


class CudaSegment:
    """GPU memory that a server can map. `sign` is its empty file in /dev/shm, which says that the owner lives."""

    def __init__(self, runtime: Runtime, sign: SystemSegment, byte_size: int) -> None:
        self._runtime, self._sign, self.byte_size = runtime, sign, byte_size
        try:
            self._pointer = runtime.allocate(byte_size)
        except BaseException:
            sign.free()
            raise

    def write(self, offset: int, data: bytes) -> None:
        self._runtime.copy(data, self._pointer + offset)

    def registration(self) -> dict[str, Any]:
        raw = base64.b64encode(self._runtime.handle(self._pointer)).decode("ascii")
        return {"raw_handle": {"b64": raw}, "device_id": DEVICE, "byte_size": self.byte_size}

    def free(self) -> None:
        try:
            self._runtime.free(self._pointer)
        finally:
            self._sign.free()


def runtime() -> Runtime:
    """The first CUDA runtime library here that finds a GPU; NoResource says what is missing."""
    missing = "no libcudart here"
    for path in _libraries():
        try:
            return Library(path)
        except OSError as error:
            missing = str(error)
        except NoResource as error:
            missing = str(error).partition(": ")[2].partition(";")[0]
    raise NoResource(
        f"CUDA shared memory needs an NVIDIA GPU on this machine: {missing}; use --transport shared-memory, or wire"
    )


def _libraries() -> Iterator[str]:
    """Triton's own first, which is what will map the memory, then those of Python packages, then the system's."""
    found = importlib.util.find_spec("nvidia")
    folders = [Path(p) for p in (found.submodule_search_locations or ())] if found else []
    for folder in (layout.triton_libraries(), *folders):
        yield from (str(file) for file in sorted(folder.rglob("libcudart*.so*")))
    system = ctypes.util.find_library("cudart")
    if system:
        yield system
