"""Asks this machine what the platform check decides on: system, processor, C library, NVIDIA driver.

Reads: the operating system. Writes: nothing. Parses on Python 3.8, because it runs before a Python is chosen.
"""

from __future__ import annotations

import ctypes
import platform
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """What a machine is, as far as the set-up cares."""

    system: str  # "Linux", "Darwin", ...
    machine: str  # "x86_64", "aarch64", "arm64", ...
    glibc: tuple[int, int] | None  # None: another C library
    nvidia_driver: bool


def gather() -> Facts:
    return Facts(
        system=platform.system(),
        machine=platform.machine(),
        glibc=_glibc(),
        nvidia_driver=nvidia_driver_answers(),
    )


def _glibc() -> tuple[int, int] | None:
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
