"""Files whose owner holds them locked (flock) as long as it lives.

The kernel drops the lock however the owner ends, so a file that can be locked is a leftover, whatever the owner's pid
has become by now.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

SHM = Path("/dev/shm")


def create(path: Path) -> int:
    """A new file that is locked, for this user (and root) only; OSError if it cannot be made."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle
        os.close(handle)  # another Brim's sweep came between the two


@contextlib.contextmanager
def seized(file: Path) -> Iterator[int | None]:
    """Its handle, locked for the block, if its owner has died; None if it lives, or the file is another user's."""
    try:
        handle = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield handle if os.fstat(handle).st_uid == os.geteuid() and _locked(handle) else None
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
