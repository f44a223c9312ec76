"""What the platform check and `brim doctor` ask of a machine before anything is installed on it.

Reads: the operating system. Writes: nothing. Parses on Python 3.8, because it runs before a Python is chosen.
"""

from __future__ import annotations

import ctypes
import re

MIN_GLIBC = (2, 35)  # what the wheels that carry tritonserver and perf_analyzer were built for
EMBEDDED_PYTHONS = ("3.11", "3.12")  # numpy 1.26, which the server's stub needs, has no wheels beyond


def glibc() -> tuple[int, int] | None:
    """Version of the C library; None if it is another one."""
    try:
        version = ctypes.CDLL(None).gnu_get_libc_version
    except (AttributeError, OSError, TypeError):
        return None
    version.restype = ctypes.c_char_p
    found = re.match(r"(\d+)\.(\d+)", version().decode("ascii"))
    return (int(found.group(1)), int(found.group(2))) if found else None


def nvidia_driver_answers() -> bool:
    """Whether the CUDA driver initialises, which a library lying about without a device does not."""
    try:
        return bool(ctypes.CDLL("libcuda.so.1").cuInit(0) == 0)
    except (AttributeError, OSError):
        return False
