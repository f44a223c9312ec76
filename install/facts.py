"""Asks this machine what the platform check decides on: system, processor, C library, NVIDIA driver.

Reads: the operating system. Writes: nothing. Parses on Python 3.8, because it runs before a Python is chosen.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from brim import machine


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
        glibc=machine.glibc(),
        nvidia_driver=machine.nvidia_driver_answers(),
    )
