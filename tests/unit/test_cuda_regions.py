"""CUDA shared memory without a GPU: what the runtime and the server are told, and what is said where there is none."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from brim import guard
from brim.errors import NoResource
from loadtest import cuda_regions, regions


class FakeRuntime:
    """GPU memory in a dictionary; a handle that only this runtime could have made."""

    def __init__(self, most: int = 2**20) -> None:
        self.memory: dict[int, bytearray] = {}
        self._most = most

    def allocate(self, byte_size: int) -> int:
        if byte_size > self._most:
            raise NoResource("CUDA shared memory: cudaMalloc failed (out of memory)")
        pointer = 0x7F0000000000 + len(self.memory) * 2**21
        self.memory[pointer] = bytearray(byte_size)
        return pointer

    def copy(self, data: bytes, pointer: int) -> None:
        base = max(p for p in self.memory if p <= pointer)
        self.memory[base][pointer - base : pointer - base + len(data)] = data

    def handle(self, pointer: int) -> bytes:
        return pointer.to_bytes(cuda_regions.HANDLE_BYTES, "little")

    def free(self, pointer: int) -> None:
        del self.memory[pointer]


class Register:
    """A server that takes CUDA regions."""

    endpoint = guard.parse_url("http://127.0.0.1:8000")

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def shared_memory(self, kind: str) -> list[str]:
        return list(self.known) if kind == "cuda" else []

    def register_shared_memory(self, kind: str, name: str, about: Any) -> None:
        assert kind == "cuda"
        self.known[name] = about

    def unregister_shared_memory(self, kind: str, name: str) -> None:
        assert kind == "cuda"
        del self.known[name]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    fake = FakeRuntime()
    monkeypatch.setattr(cuda_regions, "runtime", lambda: fake)
    return fake


def opened(control: Any, folder: Path) -> Any:
    return regions.opened("cuda_shared_memory", control, "run", {}, folder=folder)


def test_tensors_are_copied_to_the_gpu_and_the_server_gets_the_handle_of_their_memory(
    runtime: FakeRuntime, tmp_path: Path
) -> None:
    control = Register()
    with opened(control, tmp_path) as memory:
        region, parts = memory.hold([b"one", b"x" * 100])
        [(pointer, content)] = runtime.memory.items()
        assert [bytes(content[p.offset : p.offset + p.byte_size]) for p in parts] == [b"one", b"x" * 100]
        about = control.known[region.name]
        assert base64.b64decode(about.pop("raw_handle")["b64"]) == runtime.handle(pointer)
        assert about == {"device_id": 0, "byte_size": region.byte_size}
        assert (tmp_path / region.name).stat().st_size == 0  # the sign that its owner lives
        assert regions.sweep(tmp_path) == []
    assert (runtime.memory, control.known, list(tmp_path.iterdir())) == ({}, {}, [])


def test_a_gpu_without_room_leaves_nothing_behind(runtime: FakeRuntime, tmp_path: Path) -> None:
    with pytest.raises(NoResource, match="out of memory"):  # noqa: SIM117
        with opened(Register(), tmp_path) as memory:
            memory.hold([bytes(2**21)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("libraries", "library", "said"),
    [
        ([], lambda path: None, "no libcudart here"),
        (["/no/libcudart.so"], cuda_regions.Library, "/no/libcudart.so: cannot open shared object file"),
    ],
)
def test_where_there_is_no_gpu_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, libraries: list[str], library: Callable[[str], Any], said: str
) -> None:
    monkeypatch.setattr(cuda_regions, "_libraries", lambda: iter(libraries))
    monkeypatch.setattr(cuda_regions, "Library", library)
    with pytest.raises(NoResource, match=f"needs an NVIDIA GPU on this machine: {said}.*--transport") as refused:
        cuda_regions.runtime()
    assert "\n" not in str(refused.value)


def test_the_runtimes_own_words_are_repeated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(path: str) -> Any:
        raise NoResource("CUDA shared memory: cudaGetDeviceCount failed (no CUDA-capable device); use something else")

    monkeypatch.setattr(cuda_regions, "_libraries", lambda: iter(["libcudart.so"]))
    monkeypatch.setattr(cuda_regions, "Library", no_driver)
    with pytest.raises(NoResource, match=r"machine: cudaGetDeviceCount failed \(no CUDA-capable device\); use --trans"):
        cuda_regions.runtime()
