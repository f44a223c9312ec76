"""Edges and windows: a simulated server of exactly known capacity and hand-made rows are the oracles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brim.errors import InvalidRecord, Lost
from brim.records import Latency, LoadPoint, StatsRead, Status, Window
from judging.edges import whole_batch_edge
from judging.rows import ROW_DTYPE, Rows
from judging.steady import Steady, steady
from judging.windows import (
    answered,
    batch_period_ns,
    by_completion,
    cut_windows,
    latency,
    server_delta,
    window,
)
from tests.unit.simulated import SECOND, Simulated, closed_loop, constant

MS = 1_000_000
POINT = LoadPoint(concurrency=8)


def table(*rows: tuple[int, int, int, int, int, Status]) -> Rows:
    return np.array(list(rows), dtype=ROW_DTYPE).view(Rows)


def read(at_ns: int, **changes: object) -> StatsRead:
    given = StatsRead(
        before_ns=at_ns - MS,
        after_ns=at_ns + MS,
        inference_count=0,
        execution_count=0,
        success_count=0,
        fail_count=0,
        queue_ns=0,
        request_ns=0,
        batch_counts={},
        busy_ns=0,
        infer_ns=0,
        client_cpu_s=0.0,
        server_cpu_s=None,
        machine_busy_s=None,
        machine_total_s=None,
    )
    return replace(given, **changes)  # type: ignore[arg-type]  # the names are StatsRead's


def from_start(load: Simulated, *, warmup_s: float = 1.0) -> Steady:
    return Steady(from_ns=load.start_ns + round(warmup_s * SECOND), unstable=False, halves=0.0, bins=200)


def windows_of(load: Simulated, reads: Sequence[StatsRead] | None = None, **bounds: float) -> list[Window]:
    period_ns = batch_period_ns(load.reads, load.rows, from_ns=load.start_ns, until_ns=load.until_ns)
    return cut_windows(
        load.rows,
        load.reads if reads is None else reads,
        generator="locust",
        point=POINT,
        steady=from_start(load),
        until_ns=load.until_ns,
        period_ns=period_ns,
        **bounds,  # type: ignore[arg-type]  # min_batches is an int
    )


# ---------------------------------------------------------------------------- edges


def test_an_edge_is_the_last_answer_of_a_batch() -> None:
    done = np.array([100, 101, 102, 103, 200, 201, 202, 203, 300, 301, 302, 303], dtype=np.int64)
    assert whole_batch_edge(done, near_ns=150, period_ns=100) == 103  # between two batches: the one just ended
    assert whole_batch_edge(done, near_ns=201, period_ns=100) == 203  # within one: its own end
    assert whole_batch_edge(done, near_ns=0, period_ns=100) == 103  # before all: the first batch's end
    assert whole_batch_edge(done, near_ns=999, period_ns=100) == 303  # after all: the last answer


def test_an_edge_in_a_long_pause_is_where_the_pause_began() -> None:
    done = np.array([10, 11, 12, 5000, 5001], dtype=np.int64)
    assert whole_batch_edge(done, near_ns=2000, period_ns=10) == 12


# ---------------------------------------------------------------------------- rates


@pytest.mark.parametrize("service_ms", [470.0, 333.0, 97.0, 20.0])
def test_a_window_rate_is_the_capacity_however_slow_the_batches_while_ten_plain_seconds_are_not(
    service_ms: float,
) -> None:
    load = closed_loop(
        concurrency=16, max_batch=8, service=constant(round(service_ms * MS)), seconds=45, spread_ns=5 * MS
    )
    capacity = 8 / (service_ms / 1e3)
    measured = [w for w in windows_of(load) if w.kind == "measured"]
    assert measured
    for each in measured:
        assert each.items_per_s == pytest.approx(capacity, rel=0.002)
    done, _ = answered(load.rows)
    starts = [load.start_ns + 2 * SECOND + k * 37 * MS for k in range(200)]
    plain = [np.count_nonzero((done > a) & (done <= a + 10 * SECOND)) / 10 for a in starts]
    if service_ms > 100:  # one batch of 8 is then more than 1% of ten seconds
        assert max(abs(rate / capacity - 1) for rate in plain) > 0.01


def test_a_slow_model_of_batch_8_moves_a_plain_window_by_four_percent_but_not_this_one() -> None:
    load = closed_loop(concurrency=16, max_batch=8, service=constant(420 * MS), seconds=60)
    capacity = 8 / 0.42
    done, _ = answered(load.rows)
    starts = [load.start_ns + 2 * SECOND + k * 10 * MS for k in range(100)]
    plain = [np.count_nonzero((done > a) & (done <= a + 10 * SECOND)) / 10 for a in starts]
    assert max(plain) / min(plain) - 1 == pytest.approx(0.04, abs=0.005)
    assert {round(w.items_per_s / capacity, 9) for w in windows_of(load)[1:]} == {1.0}


def test_two_instances_that_end_together_and_two_that_alternate_have_the_same_capacity() -> None:
    load = closed_loop(
        concurrency=16, max_batch=4, service=constant(200 * MS), seconds=30, instances=2, spread_ns=4 * MS
    )
    for each in windows_of(load)[1:]:
        assert each.items_per_s == pytest.approx(40, rel=0.002)
        assert each.server is not None
        assert each.server.busy_share(2) == pytest.approx(1, abs=0.03)


# ---------------------------------------------------------------------------- cutting


def test_the_steady_stretch_holds_as_many_windows_as_fit_and_the_warmup_is_kept() -> None:
    load = closed_loop(concurrency=8, max_batch=4, service=constant(100 * MS), seconds=36)
    warmup, *measured = windows_of(load)
    assert warmup.kind == "warmup"
    assert warmup.start_ns == load.start_ns - 1
    assert warmup.in_flight_start == 0
    assert [w.kind for w in measured] == ["measured"] * 3
    assert all(w.seconds >= 10 and (w.batches or 0) >= 40 for w in measured)
    assert [w.start_ns for w in measured] == [warmup.end_ns, *(w.end_ns for w in measured[:-1])]
    assert load.until_ns - measured[-1].end_ns < 2 * SECOND


def test_a_window_lasts_until_it_holds_forty_batches() -> None:
    load = closed_loop(concurrency=8, max_batch=4, service=constant(500 * MS), seconds=30)
    (only,) = windows_of(load)[1:]
    assert only.seconds >= 20
    assert only.server is not None
    assert only.server.execution_count >= 40


def test_a_window_of_a_model_too_slow_for_forty_batches_ends_after_a_minute_and_says_how_many_it_holds() -> None:
    load = closed_loop(concurrency=8, max_batch=4, service=constant(2000 * MS), seconds=64)
    (only,) = windows_of(load)[1:]
    assert 57 < only.seconds <= 60
    assert only.reasons == (f"holds {round(only.batches or 0)} batches in {only.seconds:.0f} s, fewer than 40",)
    assert only.items_per_s == pytest.approx(2.0, rel=0.002)


def test_a_record_without_room_for_a_window_is_all_warmup() -> None:
    load = closed_loop(concurrency=8, max_batch=4, service=constant(100 * MS), seconds=8)
    assert [w.kind for w in windows_of(load)] == ["warmup"]


def test_no_window_reaches_into_the_drain() -> None:
    load = closed_loop(concurrency=128, max_batch=4, service=constant(100 * MS), seconds=14)
    assert load.rows["done_ns"][-1] - load.until_ns > 3 * SECOND
    assert windows_of(load)[-1].end_ns <= load.until_ns + 100 * MS


def test_an_unstable_stretch_keeps_its_windows_and_flags_them() -> None:
    load = closed_loop(concurrency=8, max_batch=4, service=constant(100 * MS), seconds=13)
    late = replace(from_start(load), unstable=True, reasons=("no steady state",))
    _, only = cut_windows(
        load.rows,
        load.reads,
        generator="locust",
        point=POINT,
        steady=late,
        until_ns=load.until_ns,
        period_ns=100 * MS,
    )
    assert (only.unstable, only.reasons) == (True, ("no steady state",))


def test_without_statistics_windows_have_no_server_side_and_say_so() -> None:
    load = closed_loop(concurrency=8, max_batch=4, service=constant(100 * MS), seconds=13)
    _, only = windows_of(load, reads=())
    assert (only.server, only.cpu) == (None, None)
    assert only.items_per_s == pytest.approx(40, rel=0.002)
    assert len(only.reasons) == 1


def test_a_server_that_restarts_between_two_reads_is_lost() -> None:
    with pytest.raises(Lost, match="execution_count went back"):
        server_delta(read(SECOND, execution_count=9), read(2 * SECOND, execution_count=3))
    with pytest.raises(Lost, match="counter 4 went back"):
        server_delta(read(SECOND, batch_counts={"4": 9}), read(2 * SECOND, batch_counts={"4": 3}))


def test_the_server_side_of_a_window_is_the_difference_of_its_two_reads() -> None:
    load = closed_loop(concurrency=8, max_batch=4, service=constant(100 * MS), seconds=13)
    only = windows_of(load)[1]
    assert only.server is not None
    assert only.cpu is not None
    assert only.server.effective_batch == 4.0
    assert only.server.read_width_ns == 2 * MS
    assert only.server.queue_ns / only.server.success_count == pytest.approx(100 * MS)
    assert only.server.request_ns / only.server.success_count == pytest.approx(200 * MS)
    assert only.cpu.server_s == pytest.approx(only.server.seconds)
    assert only.cpu.client_s == pytest.approx(0.1 * only.server.seconds)
    assert only.cpu.machine_share == pytest.approx(0.6)


# ---------------------------------------------------------------------------- accounting and latency


def test_a_request_belongs_to_the_window_in_which_it_ended() -> None:
    rows = table(
        (0, 0, 10, 3, 0, Status.OK),  # ended at the start: not counted
        (0, 0, 11, 3, 0, Status.OK),
        (5, 5, 20, 3, 0, Status.REJECTED),
        (12, 12, 20, 3, 0, Status.OK),  # ended at the end: counted
        (12, 12, 18, 3, 0, Status.CANCELLED),
        (15, 15, 21, 3, 0, Status.OK),  # still in flight
        (21, 21, 30, 3, 0, Status.OK),
    )
    assert window(by_completion(rows), start_ns=10, end_ns=20, generator="locust", point=POINT) == Window(
        generator="locust",
        point=POINT,
        start_ns=10,
        end_ns=20,
        items_ok=6,
        in_flight_start=2,
        sent=3,
        ok=2,
        rejected=1,
        timed_out=0,
        failed=0,
        cancelled=1,
        in_flight_end=1,
        latency_ms=Latency(mean=9.5e-6, p50=8e-6, p90=1.1e-5, p95=1.1e-5, p99=1.1e-5),
    )


REQUESTS = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 100), st.sampled_from(list(Status))), min_size=1, max_size=60
)


@given(requests=REQUESTS, a=st.integers(0, 300), length=st.integers(1, 300))
def test_every_window_of_every_record_adds_up(requests: list[tuple[int, int, Status]], a: int, length: int) -> None:
    rows = by_completion(table(*((sent, sent, sent + took, 2, 0, how) for sent, took, how in requests)))
    got = window(rows, start_ns=a, end_ns=a + length, generator="locust", point=POINT)
    inside = [(sent, how) for sent, took, how in requests if a < sent + took <= a + length]
    assert got.in_flight_start == sum(1 for sent, took, _ in requests if sent <= a < sent + took)
    assert got.in_flight_end == sum(1 for sent, took, _ in requests if sent <= a + length < sent + took)
    assert got.items_ok == 2 * sum(1 for _, how in inside if how is Status.OK)
    assert (got.ok, got.rejected, got.timed_out, got.failed, got.cancelled) == tuple(
        sum(1 for _, how in inside if how is status) for status in Status
    )


def test_timed_out_requests_count_with_their_limit_and_rejected_ones_not_at_all() -> None:
    rows = table(
        *((0, 0, k * MS, 1, 0, Status.OK) for k in range(1, 99)),
        (0, 0, 500 * MS, 1, 0, Status.TIMED_OUT),
        (0, 0, 500 * MS, 1, 0, Status.TIMED_OUT),
        (0, 0, 1, 1, 0, Status.REJECTED),
        (0, 0, 2, 1, 0, Status.FAILED),
        (0, 0, 3, 1, 0, Status.CANCELLED),
    )
    assert latency(rows) == Latency(mean=(98 * 99 / 2 + 1000) / 100, p50=50.0, p90=90.0, p95=95.0, p99=500.0)


def test_latency_counts_from_the_intended_time() -> None:
    got = latency(table((0, 60 * MS, 100 * MS, 1, 0, Status.OK)))
    assert got is not None
    assert got.mean == 100.0


def test_nothing_answered_has_no_latency() -> None:
    assert latency(table((0, 0, 1, 1, 0, Status.REJECTED))) is None


def test_rows_that_end_before_they_were_sent_are_refused() -> None:
    with pytest.raises(InvalidRecord, match="ended before it was sent"):
        by_completion(table((5, 5, 4, 1, 0, Status.OK)))


def test_a_million_rows_of_four_workers_give_the_rate_that_they_were_made_with() -> None:
    count, batch = 1_000_000, 100
    done = 50 * MS + (np.arange(count) // batch) * 3 * MS + (np.arange(count) % batch) * 1000
    rows = np.zeros(count, dtype=ROW_DTYPE).view(Rows)
    rows["sent_ns"] = rows["intended_ns"] = done - 6 * MS
    rows["done_ns"], rows["items"] = done, 1
    rows["worker"] = np.random.default_rng(0).integers(4, size=count)
    rows = rows[np.argsort(rows["worker"], kind="stable")]  # the files of four workers, one after the other
    last_ns = int(done[-1])
    reads = [read(at, execution_count=at // (3 * MS)) for at in range(0, last_ns, SECOND)]
    rows = by_completion(rows)
    judged = steady(*answered(rows), start_ns=0, end_ns=last_ns, period_ns=3 * MS)
    windows = cut_windows(
        rows, reads, generator="locust", point=POINT, steady=judged, until_ns=last_ns, period_ns=3 * MS
    )
    assert windows[-1].items_per_s == pytest.approx(batch / 0.003, rel=0.001)
