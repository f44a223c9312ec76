"""Whether an open loop kept up: backlogs whose growth is known by arithmetic, and queues that only wander."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from brim.records import StatsRead
from judging.backlog import growth, open_steady
from judging.edges import Nanoseconds
from judging.rows import ROW_DTYPE, Rows
from judging.steady import Steady
from judging.windows import by_completion
from queueing.arrivals import poisson
from tests.unit import simulated

SECOND = 1_000_000_000


def served(intended_ns: Nanoseconds, service_ns: int) -> Nanoseconds:
    """When each request is done by one server that takes one at a time: max(previous done, intended) + service."""
    done, free = np.empty_like(intended_ns), 0
    for n, at in enumerate(intended_ns):
        free = max(free, int(at)) + service_ns
        done[n] = free
    return done


def test_a_server_too_slow_by_a_tenth_leaves_a_tenth_of_what_arrives() -> None:
    intended = np.arange(0, 20 * SECOND, SECOND // 100)
    found = growth(intended, served(intended, SECOND // 90), start_ns=0, end_ns=20 * SECOND)
    assert found.per_s == pytest.approx(10.0, rel=0.02)  # 100/s arrive, 90/s are done
    assert found.p_value < 1e-6


def rows_of(intended_ns: Nanoseconds, done_ns: Nanoseconds, sent_ns: Nanoseconds | None = None) -> Rows:
    """Sent when they were due, unless said otherwise; by completion."""
    rows = np.zeros(len(intended_ns), ROW_DTYPE).view(Rows)
    rows["intended_ns"], rows["done_ns"], rows["items"] = intended_ns, done_ns, 1
    rows["sent_ns"] = intended_ns if sent_ns is None else sent_ns
    return by_completion(rows)


def judged(rows: Rows, seconds: int, *, reads: Sequence[StatsRead] = (), slots: int = 10**6, unsent: int = 0) -> Steady:
    return open_steady(rows, reads, start_ns=0, end_ns=seconds * SECOND, slots=slots, unsent=unsent)


@pytest.mark.parametrize("seed", range(20))
def test_a_queue_at_nine_tenths_of_its_capacity_wanders_and_does_not_grow(seed: int) -> None:
    intended = poisson(90.0, 60.0, seed)
    state = judged(rows_of(intended, served(intended, SECOND // 100)), 60)
    assert not state.unstable, state.reasons


@pytest.mark.parametrize("seed", range(5))
def test_random_arrivals_beyond_the_capacity_are_found_out(seed: int) -> None:
    intended = poisson(110.0, 30.0, seed)
    state = judged(rows_of(intended, served(intended, SECOND // 100)), 30)
    assert state.unstable
    assert "the server does not keep up" in state.reasons[0]


def test_requests_that_were_never_sent_make_it_another_load() -> None:
    intended = np.arange(0, 10 * SECOND, SECOND // 100)
    rows = rows_of(intended, intended + SECOND // 200)
    assert judged(rows, 10, unsent=10).unstable is False
    state = judged(rows, 10, unsent=11)
    assert state.unstable and "11 of 1011 requests" in " ".join(state.reasons)


def test_the_first_fifth_is_warm_up() -> None:
    intended = np.arange(0, 10 * SECOND, SECOND // 100)
    assert judged(rows_of(intended, intended + 1), 10).from_ns == 2 * SECOND


# ---------------------------------------------------------------------------- who does not keep up


def late_sender() -> Rows:
    """1,000/s are due for 20 s and 900/s are sent: the last 2 s late. Each is answered in 10 ms."""
    sent = np.arange(0, 20 * SECOND, SECOND // 900)
    return rows_of(np.arange(len(sent)) * (SECOND // 1000), sent + SECOND // 100, sent)


def two_places(service_ns: int, freeze_ns: tuple[int, int] = (0, 0)) -> Rows:
    """100/s are due for 20 s; two at a time are in flight, each for `service_ns`, and none ends in the freeze."""
    intended = np.arange(0, 30 * SECOND, SECOND // 100)
    sent: list[int] = []
    done: list[int] = []
    for at in intended:
        sent.append(max(int(at), done[-2] if len(done) > 1 else 0))
        ends = sent[-1] + service_ns
        done.append(freeze_ns[1] if freeze_ns[0] < ends < freeze_ns[1] else ends)
    rows = rows_of(intended, np.array(done), np.array(sent))
    return rows[rows["sent_ns"] < 20 * SECOND]


def reads_of(rows: Rows, *, ms: float) -> list[StatsRead]:
    """A server that had each request for so long by its own clock."""
    reads = []
    for at_ns in range(0, 21 * SECOND, SECOND):
        done = int(np.searchsorted(rows["done_ns"], at_ns, "right"))
        reads.append(simulated.a_read(at_ns, done, ms=ms))
    return reads


def test_where_only_the_sending_lags_the_client_is_named_with_its_lag() -> None:
    reason, left = judged(late_sender(), 20, slots=512, unsent=1999).reasons
    assert reason.startswith("the client does not keep up: it sent 1,9")  # p99 of a lag that grows from 0 to 2 s
    assert "10 of 512 places in flight taken" in reason and "--senders" in reason  # 900/s x 10 ms, and its own
    assert left == "1999 of 20000 requests were due and never sent"


def test_places_that_the_server_holds_are_its_own_fault_and_those_that_it_never_saw_are_not() -> None:
    """100/s into two places of 30 ms each: 67/s are sent, whoever takes the 30 ms."""
    rows = two_places(30 * SECOND // 1000)
    unsent = 2000 - len(rows)
    for reads in (reads_of(rows, ms=29.0), []):  # with its statistics, and without
        (reason,) = judged(rows, 20, slots=2, reads=reads, unsent=unsent).reasons
        assert reason == f"{unsent} of 2000 requests were due and never sent: too many were in flight already"
    reason, _ = judged(rows, 20, slots=2, reads=reads_of(rows, ms=5.0), unsent=unsent).reasons
    assert reason.startswith("the client does not keep up: it sent 6,6")  # a third of the time, at its end
    assert "the server had a request for 5 of its 30 ms in flight" in reason


def test_a_server_that_answers_no_more_is_not_the_clients_fault() -> None:
    rows = two_places(30 * SECOND // 1000)
    rows = rows[rows["sent_ns"] < 6 * SECOND]
    rows["done_ns"][-2:] = 25 * SECOND  # both places, until the load is over
    state = judged(rows, 20, slots=2, unsent=1400, reads=reads_of(rows, ms=29.0))
    assert state.unstable and "the client" not in " ".join(state.reasons)


def test_a_backlog_of_a_freeze_that_is_still_worked_off_at_the_end_is_the_servers() -> None:
    rows = two_places(15 * SECOND // 1000, (14 * SECOND, 17 * SECOND))  # 133/s at most: 100/s are no load for it
    unsent = 2000 - len(rows)
    assert unsent > 20
    for reads in (reads_of(rows, ms=15.0), []):
        assert "the client" not in " ".join(judged(rows, 20, slots=2, unsent=unsent, reads=reads).reasons)
