"""Processes and signals: a child that must not outlive its parent, and blocks that no signal may cut in two."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` (a pid) ends; it may have ended before this was asked.

    To the kernel the parent is the thread that forked. Where there is no such thing (macOS) nothing happens.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the block is done: for bookkeeping that has no good moment to stop.

    A process that is started inside inherits the blocked signals, unless it is given a mask of its own.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
