"""The simulator on a server's log against loads whose latencies are known: by arithmetic, or because it made them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brim.records import Overheads, Status
from judging import open_truth
from judging.open_truth import Stretch
from judging.rows import ROW_DTYPE, Rows
from judging.truth import Log
from queueing import arrivals
from queueing.batcher import Batcher, Service, Simulated, open_loop

MS = 1_000_000
START_NS = 3_000_000_000
COSTS = Overheads(occupancy_ms=0.5, occupancy_per_item_ms=0.05, additive_ms=0.3)


def a_stretch(items: int, *, service_ms: float, latency_ms: float, costs: Overheads = COSTS) -> Stretch:
    """Batches of one size, one behind the other, each with what it costs beside its service."""
    period_ms = service_ms + costs.occupancy_ms + costs.occupancy_per_item_ms * items
    starts = (np.arange(200) * period_ms * MS).astype(np.int64)
    lines = [(int(at), int(at) + round(service_ms * MS), items) for at in starts]
    return Stretch(log=Log.of({"0": lines}), start_ns=0, end_ns=int(starts[-1]), latency_ms=latency_ms)


def test_the_three_overheads_come_out_of_three_closed_loops() -> None:
    alone = a_stretch(1, service_ms=20.0, latency_ms=20.0 + 0.55 + 0.3)
    pairs = a_stretch(1, service_ms=20.0, latency_ms=41.1)
    full = a_stretch(8, service_ms=20.0, latency_ms=41.8)
    found = open_truth.overheads(alone, pairs, full)
    assert found is not None
    assert found.occupancy_ms == pytest.approx(0.5, abs=1e-4)
    assert found.occupancy_per_item_ms == pytest.approx(0.05, abs=1e-4)
    assert found.additive_ms == pytest.approx(0.3, abs=1e-4)


def test_where_every_batch_has_one_item_all_occupancy_is_fixed() -> None:
    alone = a_stretch(1, service_ms=20.0, latency_ms=21.0)
    found = open_truth.overheads(alone, alone, alone)
    assert found is not None
    assert found.occupancy_ms == pytest.approx(0.55, abs=1e-4)
    assert found.occupancy_per_item_ms == 0.0


def test_without_a_batch_in_the_stretch_nothing_is_known() -> None:
    good = a_stretch(1, service_ms=20.0, latency_ms=21.0)
    empty = Stretch(log=good.log, start_ns=10**15, end_ns=2 * 10**15, latency_ms=21.0)
    assert open_truth.overheads(good, good, empty) is None


def a_load(seen: Simulated, lag_s: float = 0.0) -> Rows:
    """As a sender would tell of it, which sent each request so long after its intended time."""
    rows = np.zeros(seen.arrival_s.size, dtype=ROW_DTYPE).view(Rows)
    rows["sent_ns"] = START_NS + np.rint(seen.arrival_s * 1e9)
    rows["intended_ns"] = rows["sent_ns"] - round(lag_s * 1e9)
    rows["done_ns"] = START_NS + np.rint(seen.done_s * 1e9)
    rows["items"], rows["status"] = 1, Status.OK
    return rows[np.argsort(rows["done_ns"], kind="stable")]


def a_log(seen: Simulated, costs: Overheads) -> Log:
    """As a known server would log it: what it costs beside the service is not in it."""
    held_s = (costs.occupancy_ms + costs.occupancy_per_item_ms * seen.batch_items) / 1e3
    began, ended = seen.batch_start_s, seen.batch_end_s - held_s
    stamps = [np.rint(at * 1e9).astype(np.int64) + START_NS for at in (began, ended)]
    lines = np.stack([*stamps, seen.batch_items], axis=1)
    by_instance = {
        str(i): [(a, b, c) for a, b, c in lines[seen.batch_instance == i].tolist()]
        for i in np.unique(seen.batch_instance)
    }
    return Log.of(by_instance)


def test_requests_that_never_meet_take_their_service_and_the_overheads() -> None:
    batcher = Batcher(max_batch=8)
    at_s = arrivals.constant(25.0, 20.0) / 1e9
    seen = open_loop(at_s, batcher, Service.of(batcher, lambda _: 0.020), COSTS)
    told = open_truth.foreseen(a_load(seen, lag_s=0.002), a_log(seen, COSTS), batcher, COSTS)
    assert told is not None
    assert told.mean == pytest.approx(2.0 + 20.0 + 0.55 + 0.3, abs=1e-3)  # from the intended time
    assert told.p99 == pytest.approx(told.mean, abs=1e-3)


@pytest.mark.parametrize("instances", [1, 2])
def test_a_server_that_is_what_the_simulator_thinks_is_foreseen_to_the_microsecond(instances: int) -> None:
    batcher = Batcher(max_batch=8, instances=instances)
    at_s = arrivals.poisson(280.0 * instances, 20.0, seed=5) / 1e9
    wobble = np.random.default_rng(1).normal(1.0, 0.01, 4000)
    seen = open_loop(at_s, batcher, Service.of(batcher, lambda b: 0.010 + 0.001 * b), COSTS, noise=wobble)
    rows = a_load(seen)
    found = open_truth.measured(rows)
    told = open_truth.foreseen(rows, a_log(seen, COSTS), batcher, COSTS)
    assert found is not None and told is not None
    assert told.mean == pytest.approx(found.mean, abs=2e-3)
    assert told.p99 == pytest.approx(found.p99, abs=2e-2)


def test_a_client_that_stamps_late_is_found_out() -> None:
    batcher = Batcher(max_batch=8)
    at_s = arrivals.poisson(280.0, 20.0, seed=5) / 1e9
    seen = open_loop(at_s, batcher, Service.of(batcher, lambda _: 0.020), COSTS)
    rows = a_load(seen)
    rows["done_ns"] += 1 * MS
    found, told = open_truth.measured(rows), open_truth.foreseen(rows, a_log(seen, COSTS), batcher, COSTS)
    assert found is not None and told is not None
    assert found.mean - told.mean == pytest.approx(1.0, abs=1e-3)


def test_a_load_with_a_failed_request_has_no_latency_to_compare() -> None:
    batcher = Batcher(max_batch=8)
    seen = open_loop(arrivals.constant(25.0, 4.0) / 1e9, batcher, Service.of(batcher, lambda _: 0.020))
    rows = a_load(seen)
    rows["status"][50] = Status.FAILED
    assert open_truth.measured(rows) is None
    assert open_truth.measured(rows[:0]) is None
    assert open_truth.foreseen(rows, Log.of({}), batcher, COSTS) is None


def test_a_freeze_of_the_machine_meets_the_requests_that_it_met_whatever_was_served_before_it() -> None:
    """Client and server stand still for 120 ms: a simulator that puts the long batch elsewhere counts it twice."""
    batcher, service = Batcher(max_batch=8), Service.of(Batcher(max_batch=8), lambda _: 0.020)
    due_s = arrivals.poisson(280.0, 10.0, seed=5) / 1e9
    began_s = open_loop(due_s, batcher, service, COSTS).batch_start_s
    frozen_s = began_s[began_s.size // 2]
    sent_s = np.where((due_s > frozen_s) & (due_s < frozen_s + 0.12), frozen_s + 0.12, due_s)
    seen = open_loop(sent_s, batcher, service, COSTS, noise=np.where(began_s == frozen_s, 6.0, 1.0))
    rows = a_load(seen)
    rows["intended_ns"] = (START_NS + np.rint(due_s * 1e9))[np.argsort(seen.done_s, kind="stable")]
    slower = replace(COSTS, occupancy_ms=COSTS.occupancy_ms + 0.05)  # forms a few batches less by then
    found, told = open_truth.measured(rows), open_truth.foreseen(rows, a_log(seen, COSTS), batcher, slower)
    assert found is not None and told is not None
    assert told.mean == pytest.approx(found.mean, abs=0.6)  # 4 ms if it is counted twice
    assert told.p99 == pytest.approx(found.p99, abs=20.0)  # 107 ms: what a batch is more or less


def test_the_same_requests_may_come_faster_each_as_late_as_it_was() -> None:
    """At a rate that is scaled, requests that never meet keep their latency; those that do wait longer."""
    batcher = Batcher(max_batch=1)
    at_s = arrivals.constant(20.0, 20.0) / 1e9
    seen = open_loop(at_s, batcher, Service.of(batcher, lambda _: 0.020), COSTS)
    rows, log = a_load(seen, lag_s=0.002), a_log(seen, COSTS)
    alone = 2.0 + 20.0 + 0.55 + 0.3

    def at(faster: float) -> float:
        told = open_truth.foreseen(rows, log, batcher, COSTS, faster=faster)
        assert told is not None
        return told.mean

    assert at(1.0) == pytest.approx(alone, abs=1e-3)
    assert at(2.0) == pytest.approx(alone, abs=1e-3)  # 25 ms apart
    assert at(2.5) > alone + 20  # 20 ms apart: each waits longer than the one before it


@pytest.mark.parametrize("rate", [190.0, 320.0])
def test_the_overheads_of_an_open_loop_come_out_of_it(rate: float) -> None:
    batcher = Batcher(max_batch=8)
    at_s = arrivals.poisson(rate, 20.0, seed=6) / 1e9
    seen = open_loop(at_s, batcher, Service.of(batcher, lambda b: 0.018 + 0.0002 * b), COSTS)
    found = open_truth.overheads_open(a_log(seen, COSTS), a_load(seen), batcher)
    assert found is not None
    assert found.occupancy_ms == pytest.approx(COSTS.occupancy_ms, abs=1e-3)
    assert found.occupancy_per_item_ms == pytest.approx(COSTS.occupancy_per_item_ms, abs=1e-4)
    assert found.additive_ms == pytest.approx(COSTS.additive_ms, abs=1e-3)


def test_batches_of_one_item_tell_a_fixed_cost_alone() -> None:
    batcher = Batcher(max_batch=1)
    seen = open_loop(arrivals.poisson(40.0, 20.0, seed=6) / 1e9, batcher, Service.of(batcher, lambda _: 0.020), COSTS)
    found = open_truth.overheads_open(a_log(seen, COSTS), a_load(seen), batcher)
    assert found is not None
    assert found.occupancy_ms == pytest.approx(0.55, abs=1e-3)
    assert found.occupancy_per_item_ms == 0.0
    assert found.additive_ms == pytest.approx(0.3, abs=1e-3)


def test_an_open_loop_whose_requests_never_wait_or_fail_tells_no_overheads() -> None:
    batcher = Batcher(max_batch=8)
    service = Service.of(batcher, lambda _: 0.020)
    seen = open_loop(arrivals.constant(25.0, 4.0) / 1e9, batcher, service, COSTS)
    assert open_truth.overheads_open(a_log(seen, COSTS), a_load(seen), batcher) is None
    busy = open_loop(arrivals.poisson(320.0, 4.0, seed=6) / 1e9, batcher, service, COSTS)
    rows = a_load(busy)
    assert open_truth.overheads_open(a_log(busy, COSTS), rows, batcher) is not None
    rows["status"][50] = Status.FAILED
    assert open_truth.overheads_open(a_log(busy, COSTS), rows, batcher) is None
