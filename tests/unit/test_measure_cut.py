"""A load's windows: perf_analyzer, which cannot go on until one fits, gets its window; Locust goes on instead."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from brim.records import LoadPoint, Verdict, Window
from experiments.measure.cut import enough_seconds, period_ns, windows_of
from judging.rows import ROW_DTYPE, Rows
from judging.verdict import Facts, because, verdict
from tests.unit.simulated import Simulated, closed_loop, constant

MS = 1_000_000


def ramp_then_steady(seconds: float, ramp_s: float) -> Rows:
    """Batches of 4 every 100 ms, every 130 ms while it ramps: the cut falls where the ramp ends."""
    ends, at = [], 0.0
    while at < seconds:
        at += 0.13 if at < ramp_s else 0.1
        ends += [round(at * 1e9) + i * 1000 for i in range(4)]
    rows = np.zeros(len(ends), dtype=ROW_DTYPE).view(Rows)
    rows["done_ns"], rows["items"] = ends, 1
    rows["sent_ns"] = rows["intended_ns"] = np.maximum(0, rows["done_ns"] - 200 * MS)
    return rows


def cut(rows: Rows, generator: Literal["locust", "perf_analyzer"]) -> list[Window]:
    windows = windows_of(
        rows, (), generator=generator, point=LoadPoint(concurrency=8), min_seconds=10, min_batches=40, max_seconds=60
    )
    return [w for w in windows if w.kind == "measured"]


def test_a_record_whose_cut_leaves_no_window_gives_one_to_perf_analyzer_alone_and_it_says_so() -> None:
    rows = ramp_then_steady(16.0, 6.8)
    assert cut(rows, "locust") == []
    (window,) = cut(rows, "perf_analyzer")
    assert window.seconds >= 10
    assert "its first fifth was taken as warm-up" in window.reasons


def read_late(period_s: float, first_read: float, seconds: float) -> Simulated:
    """A server with a batch every `period_s`, read every 1.05 s from `first_read` on: where the machine is full."""
    return closed_loop(
        concurrency=8, max_batch=4, service=constant(round(period_s * 1e9)), seconds=seconds, spread_ns=MS,
        read_every_ns=1050 * MS, first_read=first_read,
    )  # fmt: skip


def windows_for(perf_analyzer: Simulated, window_s: float) -> list[Window]:
    windows = windows_of(
        perf_analyzer.rows, perf_analyzer.reads, generator="perf_analyzer", point=LoadPoint(concurrency=8),
        min_seconds=window_s, min_batches=1, max_seconds=60,
    )  # fmt: skip
    return [w for w in windows if w.kind == "measured"]


@pytest.mark.parametrize(("window_s", "period_s"), [(2, 0.024), (2, 0.3), (5, 0.024), (10, 0.25)])
def test_perf_analyzer_is_given_so_long_that_a_window_fits_wherever_the_reads_fall(
    window_s: float, period_s: float
) -> None:
    seconds = enough_seconds(window_s, period_s)
    phases = np.linspace(0.0, 0.95, 20)
    held = [windows_for(read_late(period_s, p, seconds), window_s) for p in phases]
    assert all(held)
    without_reads = window_s / 0.8
    assert not all(windows_for(read_late(period_s, p, without_reads), window_s) for p in phases)


def test_a_record_that_is_steady_is_cut_alike_for_both() -> None:
    rows = ramp_then_steady(16.0, 0.0)
    (one,), (other,) = cut(rows, "locust"), cut(rows, "perf_analyzer")
    assert one.items_per_s == other.items_per_s == pytest.approx(40, rel=0.01)
    assert not any("first fifth" in reason for reason in other.reasons)


def test_a_record_that_was_found_long_enough_is_judged_no_further() -> None:
    """What came after the decision, here a server that nearly stops, can neither move the cut nor take the window."""
    steady = ramp_then_steady(16.0, 0.0)
    decided_ns = int(steady["sent_ns"].max())
    later = ramp_then_steady(16.0, 16.0)
    later["done_ns"] = steady["done_ns"].max() + 5 * later["done_ns"][: len(later)]
    later["sent_ns"] = later["intended_ns"] = later["done_ns"] - 200 * MS
    both = np.concatenate((steady, later)).view(Rows)
    assert [w.items_ok for w in cut(both, "locust")] != [w.items_ok for w in cut(steady, "locust")]
    windows = windows_of(
        both, (), generator="locust", point=LoadPoint(concurrency=8), min_seconds=10, min_batches=40, max_seconds=60,
        until_ns=decided_ns,
    )  # fmt: skip
    (window,) = [w for w in windows if w.kind == "measured"]
    (alone,) = cut(steady, "locust")
    assert (window.start_ns, window.end_ns, window.items_ok) == (alone.start_ns, alone.end_ns, alone.items_ok)
    assert not window.unstable


def test_nothing_sent_has_no_window() -> None:
    rows = np.zeros(0, dtype=ROW_DTYPE).view(Rows)
    assert cut(rows, "locust") == []
    assert period_ns(rows, ()) == 1


def test_reaching_the_rate_that_the_user_allows_is_no_capacity_of_the_server() -> None:
    facts = Facts(throttled=True, doubling_gain=0.0, further_sender_gain=0.0)
    assert verdict(facts) is Verdict.CLIENT_LIMITED
    assert "you allow" in because(facts)
