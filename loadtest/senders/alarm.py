"""An alarm clock inside an event loop, exact to some microseconds.

epoll takes whole milliseconds, so a loop's own timers ring up to one late. A timerfd rings on the nanosecond, and to
the loop it is a descriptor that becomes readable. Where there are none (macOS) the loop's own timer has to do.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Any

CLOCK_MONOTONIC = 1  # <time.h>, Linux; what time.monotonic_ns reads
TFD_NONBLOCK, TFD_CLOEXEC, TFD_TIMER_ABSTIME = os.O_NONBLOCK, os.O_CLOEXEC, 1  # <sys/timerfd.h>
SECOND_NS = 1_000_000_000


class _Setting(ctypes.Structure):
    """struct itimerspec: it never repeats, and rings at an absolute instant (0 = never)."""

    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "at_s", "at_ns")]


class Alarm:
    """Rings in the loop, once for each time that it is set."""

    def __init__(
        self,
        on_readable: Callable[[int], Any],
        later: Callable[[float], Any],
        *,
        exact: bool = sys.platform == "linux",
    ) -> None:
        """What the loop has to offer: ring whenever that descriptor is readable, or once after so many seconds."""
        self._later, self._fd = later, -1
        self._kept: Any = None  # a loop may forget what nobody else holds
        if exact:
            self._libc, self._setting = ctypes.CDLL(None, use_errno=True), _Setting()
            self._fd = self._libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
            if self._fd < 0:
                raise OSError(ctypes.get_errno(), "timerfd_create")
            self._kept = on_readable(self._fd)

    def set(self, instant_ns: int) -> None:
        """Ring then, at once if that is over, and no more for what it was set to before; 0: do not ring.

        Who is rung sets it again, or it goes on ringing.
        """
        if self._fd >= 0:  # setting it also takes back that the descriptor is readable
            self._setting.at_s, self._setting.at_ns = divmod(instant_ns, SECOND_NS)
            self._libc.timerfd_settime(self._fd, TFD_TIMER_ABSTIME, ctypes.byref(self._setting), None)
        elif instant_ns:  # a timer that was set before may ring, too: whoever is rung looks what is due
            self._kept = self._later(max(0.0, (instant_ns - time.monotonic_ns()) / 1e9))
