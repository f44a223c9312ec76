"""The arrivals of one sender process in open loop: which is due, and how many were due until some instant.

Reads the .npy that the spec names. Pure otherwise: the caller tells the time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from brim import disk
from brim.errors import InvalidRecord

NONE = 0  # no instant: nothing is due, or nothing comes any more


class Schedule:
    """Arrivals in their order, each given out once."""

    def __init__(self, offsets_ns: Sequence[int]) -> None:
        """`offsets_ns`: from the start, sorted, none negative; kept as they are, so an array stays one."""
        self._offsets, self._taken = offsets_ns, 0
        self._start_ns = 0
        self.next_ns = NONE  # when the next arrival is due; none before the start is known

    def begin(self, start_ns: int) -> None:
        """The instant that the offsets count from."""
        self._start_ns = start_ns
        self._look_ahead()

    def take(self, now_ns: int) -> int:
        """The instant at which the next arrival was due, if that is not later than `now_ns`; else NONE."""
        due_ns = self.next_ns
        if due_ns == NONE or due_ns > now_ns:
            return NONE
        self._taken += 1
        self._look_ahead()
        return due_ns

    def due(self, instant_ns: int) -> int:
        """How many arrivals there were until then."""
        return bisect_right(self._offsets, instant_ns - self._start_ns)

    @property
    def used_up(self) -> bool:
        return self._taken == len(self._offsets)

    def _look_ahead(self) -> None:
        self.next_ns = NONE if self.used_up else self._start_ns + int(self._offsets[self._taken])


def read(file: Path, number: int, senders: int, seconds: float) -> Schedule:
    """The arrivals of sender `number` of so many, as far as the load goes; InvalidRecord if the file holds none."""
    import numpy as np  # a closed loop does without, and starts sooner

    with disk.told(file):
        try:
            every = np.load(file, mmap_mode="r")
        except ValueError:
            raise InvalidRecord(f"{file}: not a .npy file; write the arrivals as int64 ns from the start") from None
    if every.dtype != np.int64 or every.ndim != 1 or (np.diff(every, prepend=0) < 0).any():
        raise InvalidRecord(f"{file}: not one row of int64 ns from the start, sorted, none negative")
    within = every[: np.searchsorted(every, int(seconds * 1e9))]
    return Schedule(np.array(within[number::senders]).data)  # a copy: no load waits for the disk
