"""What an open loop is made of: the arrivals of one process, who gets them, and the alarm that rings for them."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brim.errors import InvalidRecord, NoResource
from brim.records import Status
from loadtest.senders import schedule
from loadtest.senders.alarm import Alarm
from loadtest.senders.dispatch import Cap, Dispatcher
from loadtest.senders.schedule import NONE, Schedule
from queueing.arrivals import highest_random_rate, poisson
from tests.unit.test_sender import job

START = 1_000
SECOND = 1_000_000_000


def begun(offsets: list[int]) -> Schedule:
    arrivals = Schedule(offsets)
    arrivals.begin(START)
    return arrivals


def saved(folder: Path, offsets: object) -> Path:
    np.save(folder / "arrivals.npy", np.asarray(offsets))
    return folder / "arrivals.npy"


# ---------------------------------------------------------------------------- the arrivals of one process


@given(st.lists(st.integers(0, 500), max_size=40).map(sorted), st.lists(st.integers(0, 600), max_size=60).map(sorted))
def test_every_arrival_is_given_once_in_order_and_never_before_it_is_due(offsets: list[int], looks: list[int]) -> None:
    arrivals, given_out = begun(offsets), []
    for look in (START + at for at in looks):
        while intended := arrivals.take(look):
            assert intended <= look
            given_out.append(intended - START)
        assert len(given_out) == arrivals.due(look) == sum(1 for offset in offsets if START + offset <= look)
    assert given_out == offsets[: len(given_out)]
    assert arrivals.used_up == (given_out == offsets)


def test_nothing_is_due_before_the_start_is_known() -> None:
    arrivals = Schedule([0, 5])
    assert (arrivals.next_ns, arrivals.take(10**18)) == (NONE, NONE)
    arrivals.begin(START)
    assert (arrivals.take(START - 1), arrivals.take(START), arrivals.next_ns) == (NONE, START, START + 5)


def test_processes_share_the_arrivals_in_turn_and_leave_out_what_comes_after_the_end(tmp_path: Path) -> None:
    file = saved(tmp_path, np.arange(10, dtype=np.int64) * 100_000_000)
    for number, expected in enumerate(([0, 3, 6], [1, 4], [2, 5])):
        arrivals = schedule.read(file, number, 3, 0.7)
        arrivals.begin(START)
        assert [arrivals.take(2**62) for _ in expected] == [START + n * 100_000_000 for n in expected]
        assert arrivals.used_up


@pytest.mark.parametrize(
    "offsets",
    [[3, 2], [-1, 2], [1.0, 2.0], [[1, 2], [3, 4]], ["a"]],
    ids=["unsorted", "negative", "float", "2d", "text"],
)
def test_a_file_that_is_no_schedule_is_refused(tmp_path: Path, offsets: object) -> None:
    with pytest.raises(InvalidRecord, match="int64 ns"):
        schedule.read(saved(tmp_path, offsets), 0, 1, 1.0)


def test_a_file_that_is_no_array_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "arrivals.npy").write_text("0.1\n0.2\n")
    with pytest.raises(InvalidRecord, match=r"not a \.npy file"):
        schedule.read(tmp_path / "arrivals.npy", 0, 1, 1.0)
    with pytest.raises(NoResource):
        schedule.read(tmp_path / "nowhere.npy", 0, 1, 1.0)


# ---------------------------------------------------------------------------- who gets them


class FakeAlarm(Alarm):
    """Rings when it is told."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self.ring, self.at_ns = ring, -1

    def set(self, instant_ns: int) -> None:
        self.at_ns = instant_ns


class Slots:
    """A dispatcher whose slots take down what they were given, and when the clock stands still."""

    def __init__(self, offsets: list[int], slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = START
        monkeypatch.setattr("loadtest.senders.dispatch.time.monotonic_ns", lambda: self.now)
        self.job = job()
        self.dispatcher = Dispatcher(self.job, Schedule(offsets), slots)
        self.got: list[tuple[int, int]] = []  # slot, offset
        for slot in range(slots):
            self.park(slot)
        self.dispatcher.begin(START, self._alarm)

    def _alarm(self, ring: Callable[[], None]) -> Alarm:
        self.alarm = FakeAlarm(ring)
        return self.alarm

    def park(self, slot: int) -> None:
        self.dispatcher.park(lambda due_ns: self.got.append((slot, due_ns - START)))

    def ring_at(self, offset: int) -> None:
        self.now = START + offset
        self.alarm.ring()


def test_the_slot_that_was_busy_last_is_the_next_to_send(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots([10, 20, 30, 40], 3, monkeypatch)
    assert slots.alarm.at_ns == START + 10
    for offset in (10, 20, 30):
        slots.ring_at(offset)
        slots.park(slots.got[-1][0])
    assert slots.got == [(0, 10), (0, 20), (0, 30)]
    slots.ring_at(39)
    assert (len(slots.got), slots.alarm.at_ns) == (3, START + 40)


def test_a_late_wake_up_hands_out_all_that_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots([10, 20, 30, 40], 8, monkeypatch)
    slots.ring_at(35)
    assert slots.got == [(0, 10), (1, 20), (2, 30)]
    assert slots.alarm.at_ns == START + 40


def test_where_no_slot_is_idle_arrivals_wait_keep_their_instant_and_the_alarm_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots = Slots([10, 20, 30, 90], 1, monkeypatch)
    slots.ring_at(10)
    assert slots.alarm.at_ns == NONE
    slots.now = START + 50
    assert [slots.dispatcher.overdue() for _ in range(3)] == [START + 20, START + 30, NONE]
    slots.park(0)
    assert slots.alarm.at_ns == START + 90
    slots.ring_at(90)
    assert not slots.dispatcher.done  # the last one is being sent
    slots.park(0)
    assert slots.dispatcher.done


def test_a_rate_cap_holds_whatever_the_schedule_is_and_what_it_holds_up_keeps_its_instant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("loadtest.senders.job.most_per_s", lambda *_: 2.0)
    slots = Slots([0] * 5 + [10 * SECOND], 8, monkeypatch)
    sent: list[int] = []
    while slots.alarm.at_ns != NONE and len(sent) < 6:
        slots.ring_at(slots.alarm.at_ns - START)
        sent += [slots.now - START] * (len(slots.got) - len(sent))
    assert sent == [0, 0, SECOND, SECOND, 2 * SECOND, 10 * SECOND]
    assert [offset for _, offset in slots.got] == [0] * 5 + [10 * SECOND]


def test_a_slot_that_becomes_free_keeps_to_the_rate_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.senders.job.most_per_s", lambda *_: 2.0)
    slots = Slots([0, 0, 0], 1, monkeypatch)
    slots.ring_at(0)
    assert [slots.dispatcher.overdue() for _ in range(2)] == [START, NONE]
    slots.park(0)
    assert (slots.alarm.at_ns, slots.dispatcher.behind) == (START + SECOND, False)
    slots.now = START + SECOND
    assert slots.dispatcher.behind


@given(
    st.lists(st.integers(0, 5 * SECOND), max_size=40).map(sorted),
    st.sampled_from([0.4, 1.0, 2.5, 7.0]),
)
def test_no_second_sees_more_than_the_cap_and_a_schedule_that_keeps_to_it_is_sent_as_it_is(
    due: list[int], most_per_s: float
) -> None:
    cap, now, sent = Cap(most_per_s), 0, []
    for instant in due:
        now = max(now, instant, cap.next_ns)
        cap.take(now)
        sent.append(now)
    count = math.ceil(most_per_s)
    span_ns = int(1e9 * count / most_per_s)

    def kept(instants: list[int]) -> bool:
        return all(later - earlier >= span_ns for earlier, later in zip(instants, instants[count:], strict=False))

    assert span_ns >= SECOND
    assert kept(sent)
    assert sent == due or not kept(due)


@pytest.mark.parametrize("most_per_s", [20.0, 100.0, 400.0])
def test_random_arrivals_as_near_to_the_cap_as_they_may_come_are_hardly_ever_held_back(most_per_s: float) -> None:
    """Loads of 40 s, of which one with 1% over 10 ms late would count as sent late: at two deviations 8 of 20 are."""
    late_loads = 0
    for seed in range(10):
        cap, now, late = Cap(most_per_s), 0, 0
        due = poisson(highest_random_rate(most_per_s), 40.0, seed).tolist()
        for instant in due:
            now = max(now, instant, cap.next_ns)
            cap.take(now)
            late += now - instant > 10_000_000
        late_loads += late > 0.01 * len(due)
    assert late_loads <= 1


def test_what_was_due_when_the_job_stopped_and_never_sent_is_counted_and_nothing_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots = Slots([10, 20, 30, 40, 90], 1, monkeypatch)
    slots.ring_at(10)
    slots.now = START + 40
    slots.job.stop("stopped")
    slots.now = START + 95
    assert slots.dispatcher.overdue() == NONE
    slots.park(0)
    slots.alarm.ring()
    assert slots.got == [(0, 10)]
    assert slots.alarm.at_ns == NONE
    assert slots.dispatcher.unsent(ended=1) == 3


def test_a_bug_in_a_slot_ends_the_load(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    slots = Slots([10], 1, monkeypatch)
    slots.dispatcher.park(lambda due_ns: [][due_ns])
    slots.ring_at(10)
    assert (slots.job.stopping, slots.job.ended) == (True, "crashed")
    assert "IndexError" in capsys.readouterr().err


# ---------------------------------------------------------------------------- the alarm


def rung(exact: bool, gaps_ns: list[int]) -> list[int]:
    """How late each ring was after the instant that it was set to, in ns."""

    async def ringing() -> list[int]:
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        lateness: list[int] = []

        def ring() -> None:
            lateness.append(time.monotonic_ns() - at_ns)
            alarm.set(0)
            woken.set()

        alarm = Alarm(lambda fd: loop.add_reader(fd, ring), lambda seconds: loop.call_later(seconds, ring), exact=exact)
        for gap_ns in gaps_ns:
            at_ns = time.monotonic_ns() + gap_ns
            alarm.set(at_ns)
            woken.clear()
            await asyncio.wait_for(woken.wait(), 5)
        return lateness

    return asyncio.run(ringing())


@pytest.mark.skipif(sys.platform != "linux", reason="timerfds are Linux's")
def test_the_alarm_rings_on_the_instant_and_not_on_the_next_millisecond() -> None:
    rung(True, [0] * 10)  # an instant that is over is no instant that is missed
    lateness = rung(True, [1_300_000, 500_000] * 30)
    assert min(lateness) >= 0
    assert min(lateness) < 400_000  # by a loop's own timers 0.5 ms at best; a busy machine may make most of them late


def test_where_there_is_no_timerfd_the_loops_own_timer_rings() -> None:
    lateness = rung(False, [3_000_000] * 10)
    assert -1_000_000 < min(lateness) < 20_000_000  # as above


@pytest.mark.skipif(sys.platform != "linux", reason="timerfds are Linux's")
def test_an_alarm_that_is_set_anew_no_longer_rings_for_what_it_was_set_to_before() -> None:
    async def ringing() -> tuple[int, int]:
        loop, rings = asyncio.get_running_loop(), 0

        def ring() -> None:
            nonlocal rings
            rings += 1
            alarm.set(0)

        alarm = Alarm(lambda fd: loop.add_reader(fd, ring), lambda seconds: loop.call_later(seconds, ring))
        now = time.monotonic_ns()
        alarm.set(now + 5_000_000)
        alarm.set(now + 3600 * SECOND)
        await asyncio.sleep(0.02)  # or however much longer it takes
        early = rings
        alarm.set(time.monotonic_ns())
        deadline = time.monotonic() + 10
        while not rings and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)  # it would go on ringing if setting it to 0 did not silence it
        return early, rings

    assert asyncio.run(ringing()) == (0, 1)


def test_requests_are_taken_down_with_the_instant_that_was_intended() -> None:
    class Kept:
        def add(self, intended_ns: int, sent_ns: int, done_ns: int, status: int) -> None:
            rows.append((intended_ns, sent_ns, done_ns, status))

    rows: list[tuple[int, int, int, int]] = []
    job(rows=Kept()).record(1, 2, 3, Status.OK, "")
    assert rows == [(1, 2, 3, Status.OK)]
