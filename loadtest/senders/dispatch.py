"""Open loop: every arrival, when it is due, goes to a slot that is idle; where none is, it waits and keeps its instant.

Knows no event loop: an alarm rings in the caller's, and a slot is woken there.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from loadtest.senders.alarm import Alarm
from loadtest.senders.job import Job
from loadtest.senders.schedule import NONE, Schedule

Wake = Callable[[int], object]


class Dispatcher:
    """Gives the arrivals of one process to its slots, in order, never earlier than they are due and may be sent."""

    def __init__(self, job: Job, schedule: Schedule, slots: int) -> None:
        self._job, self._schedule, self._slots = job, schedule, slots
        self._cap = Cap(job.most_per_s) if job.most_per_s else None
        self._idle: list[Wake] = []  # the last one was busy last: few connections are used, and they stay warm
        self._alarm: Alarm | None = None

    def begin(self, start_ns: int, alarm: Callable[[Callable[[], None]], Alarm]) -> None:
        """Arrivals count from that instant; `alarm` makes one that rings in the caller's loop."""
        self._idle.reverse()  # the first slot has its connection already
        self._schedule.begin(start_ns)
        self._alarm = alarm(self._ring)
        self._alarm.set(self._next_ns)

    def overdue(self) -> int:
        """When the arrival was due that a slot which has become free has to send at once; NONE if none waits."""
        now_ns = time.monotonic_ns()
        if self._job.stopping or (self._cap is not None and now_ns < self._cap.next_ns):
            return NONE
        due_ns = self._schedule.take(now_ns)
        if self._cap is not None and due_ns != NONE:
            self._cap.take(now_ns)
        return due_ns

    def park(self, wake: Wake) -> None:
        """A slot has nothing to do: `wake` is called in the loop, once, with the instant when an arrival was due."""
        self._idle.append(wake)
        if self._alarm is not None and len(self._idle) == 1:  # nobody was idle, so it was not set
            self._alarm.set(self._next_ns)

    @property
    def done(self) -> bool:
        """Nothing comes any more, and everything is answered."""
        return self._schedule.used_up and len(self._idle) == self._slots

    @property
    def behind(self) -> bool:
        """Something is due for an idle slot, which the alarm is about to wake."""
        return bool(self._idle) and NONE < self._next_ns <= time.monotonic_ns()

    def unsent(self, ended: int) -> int:
        """How many arrivals were due when the job stopped, beyond the `ended` requests of the load."""
        return self._schedule.due(self._job.stopped_ns) - ended

    @property
    def _next_ns(self) -> int:
        """When the next arrival is due and may be sent; NONE if nothing comes any more."""
        due_ns = self._schedule.next_ns
        return due_ns if self._cap is None or due_ns == NONE else max(due_ns, self._cap.next_ns)

    def _ring(self) -> None:
        """Hand out what is due: one arrival, or several after a late wake-up."""
        with self._job.watched():
            idle = self._idle
            while idle and (due_ns := self.overdue()) != NONE:
                idle.pop()(due_ns)
            assert self._alarm is not None  # it has just rung
            self._alarm.set(self._next_ns if idle and not self._job.stopping else NONE)


class Cap:
    """The rate limit of a host: no second sees more requests than that, rounded up to a whole number.

    What is rounded up is made up for: so many requests then have more than a second. Senders share a limit and each
    keeps to its own part, so a second may see one more for each of them. Within it arrivals keep their instants, where
    an even spacing would make every law of arrivals a constant one.
    """

    def __init__(self, most_per_s: float) -> None:
        self._count = math.ceil(most_per_s)
        self._span_ns = int(1e9 * self._count / most_per_s)  # a second, or more: that may hold so many
        self._newest: deque[int] = deque()  # when those of the last span were sent

    @property
    def next_ns(self) -> int:
        """From when on one more may be sent."""
        return self._newest[0] + self._span_ns if len(self._newest) == self._count else 0

    def take(self, now_ns: int) -> None:
        """One more is sent."""
        while self._newest and self._newest[0] + self._span_ns <= now_ns:
            self._newest.popleft()
        self._newest.append(now_ns)
