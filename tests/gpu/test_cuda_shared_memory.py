"""CUDA shared memory on a real GPU: another process maps what was put there, as a server does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from brim import layout
from brim.errors import NoResource
from loadtest import cuda_regions
from loadtest.regions import SystemSegment

pytestmark = pytest.mark.gpu

#: Opens the handle and copies the bytes back (cudaIpcOpenMemHandle takes the handle by value).
READER = """
import base64, ctypes, sys
from loadtest import cuda_regions
library = cuda_regions.runtime()._library
class Handle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_char * cuda_regions.HANDLE_BYTES)]
handle, size = Handle.from_buffer_copy(base64.b64decode(sys.argv[1])), int(sys.argv[2])
library.cudaIpcOpenMemHandle.argtypes = [ctypes.POINTER(ctypes.c_void_p), Handle, ctypes.c_uint]
pointer, data = ctypes.c_void_p(), ctypes.create_string_buffer(size)
assert library.cudaIpcOpenMemHandle(ctypes.byref(pointer), handle, 1) == 0
assert library.cudaMemcpy(data, pointer, ctypes.c_size_t(size), 2) == 0
assert library.cudaIpcCloseMemHandle(pointer) == 0
print(data.raw.hex())
"""


def test_another_process_reads_the_bytes_through_the_handle(tmp_path: Path) -> None:
    try:
        runtime = cuda_regions.runtime()
    except NoResource as none:
        pytest.skip(str(none))
    segment = cuda_regions.CudaSegment(runtime, SystemSegment(tmp_path, "sign", 0), 4096)
    try:
        segment.write(0, bytes(4096))
        segment.write(100, b"an image")
        told = segment.registration()
        done = subprocess.run(
            [sys.executable, "-c", READER, told["raw_handle"]["b64"], str(told["byte_size"])],
            capture_output=True, text=True, check=True, cwd=layout.CHECKOUT, timeout=60,
        )  # fmt: skip
    finally:
        segment.free()
    assert bytes.fromhex(done.stdout.strip()) == bytes(100) + b"an image" + bytes(4096 - 108)
    assert list(tmp_path.iterdir()) == []
