"""The known server `contended`: its instances share one rate of work, as on a GPU.

A batch is service_ms of work, whatever its size; while m instances are busy, each works at 1/m. What is left of each
one's work lies in a small file that all share. Reads and writes <server folder>/contended-<variant>.bin: doubles, the
instant in ns that it holds for, then the work left of instance 0, 1, ... in ns.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from array import array
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from time import monotonic_ns

from . import stub, timed


def done_in_ns(left_ns: Sequence[float], instance: int) -> float:
    """When that instance's work is done if no other begins: until then each has worked off as much, or all it had."""
    return sum(min(each, left_ns[instance]) for each in left_ns)


def worked_off(left_ns: Sequence[float], elapsed_ns: float) -> list[float]:
    """What is left after that time, in which some may have come to their end and left the rest more."""
    done = 0.0  # by each of those that are still busy
    busy = sorted(each for each in left_ns if each > 0)
    for position, each in enumerate(busy):
        sharing = len(busy) - position
        step = min(each - done, elapsed_ns / sharing)
        done += step
        elapsed_ns -= step * sharing
    return [max(0.0, each - done) for each in left_ns]


class SharedWork:
    """One instance's view of the work of all.

    Whoever looks brings the file up to date by calculation, ends of work included, so nobody has to wake up for that,
    and the work of an instance that died comes to its end like any other. Others can only make us slower: to sleep
    until the end as it is foreseen now, and then to look again, misses nothing.
    """

    def __init__(self, file: Path, instance: int) -> None:
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._instance = instance
        self.begin(0, monotonic_ns())  # nothing: forget what a process of this number left that died

    def begin(self, work_ns: float, now_ns: int) -> None:
        """This instance has that much to do from now on."""
        with self._left_at(now_ns) as left_ns:
            left_ns[self._instance] = work_ns

    def done_ns(self, now_ns: int) -> int:
        """The instant at which this instance's work is done, as it can be foreseen now; now where it is."""
        with self._left_at(now_ns) as left_ns:
            return now_ns + ceil(done_in_ns(left_ns, self._instance))

    def close(self) -> None:
        os.close(self._descriptor)

    @contextlib.contextmanager
    def _left_at(self, now_ns: int) -> Iterator[list[float]]:
        """What is left of everyone's work, kept as the block leaves it.

        Of a process that dies in here the kernel drops the lock.
        """
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            held = array("d", os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0))
            held.extend([0.0] * (self._instance + 2 - len(held)))
            at_ns = max(held[0], now_ns)  # another may have looked between our clock and our lock
            left_ns = worked_off(held[1:], at_ns - held[0])
            yield left_ns
            os.pwrite(self._descriptor, array("d", [at_ns, *left_ns]).tobytes(), 0)
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)


class TritonPythonModel(timed.TimedModel):
    """Answers with what it was sent, once its share of the time has done the batch's work."""

    def initialize(self, args: dict[str, str]) -> None:
        super().initialize(args)
        file = Path(os.environ[stub.SERVER_FOLDER]) / f"contended-{args['model_name']}.bin"
        self._work = SharedWork(file, stub.instance_number(args))

    def wait(self, start_ns: int, items: int) -> None:
        self._work.begin(self.service_ms(items) * 1e6, start_ns)
        while (done_ns := self._work.done_ns(now_ns := monotonic_ns())) > now_ns:
            timed.sleep_until(done_ns)

    def finalize(self) -> None:
        super().finalize()
        self._work.close()
