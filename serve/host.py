"""What this machine offers a server: the mode that fits it, and room in a file system.

Reads: the operating system. Writes: nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from brim import machine
from serve import docker_engine

Mode = Literal["embedded", "docker", "remote"]


def default_mode() -> Mode:
    """docker where an engine and a GPU are both there (its image has the fast backends), else embedded."""
    return "docker" if machine.nvidia_driver_answers() and docker_engine.answers() else "embedded"


def free_bytes(folder: Path) -> int:
    """Room left in the file system of `folder`."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize
