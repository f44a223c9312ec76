"""What this machine offers a server: an NVIDIA driver, a docker engine, shared memory.

Reads: the operating system. Writes: nothing.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path
from typing import Literal

from serve import docker_engine

Mode = Literal["embedded", "docker", "remote"]


def nvidia_driver_answers() -> bool:
    """Whether the CUDA driver initialises, which a library lying about without a device does not."""
    try:
        return bool(ctypes.CDLL("libcuda.so.1").cuInit(0) == 0)
    except (AttributeError, OSError):
        return False


def gpu_name() -> str | None:
    """Name and driver version of the first GPU as nvidia-smi tells them; None where it does not answer."""
    words = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if lines else None


def default_mode() -> Mode:
    """docker where an engine and a GPU are both there (its image has the fast backends), else embedded."""
    return "docker" if nvidia_driver_answers() and docker_engine.answers() else "embedded"


def free_bytes(folder: Path) -> int:
    """Room left in the file system of `folder`."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize
