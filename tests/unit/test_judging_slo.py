"""The statistics behind the rate at an SLO: by hand, by closed forms, and on servers simulated without any noise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.simulated_probe import SimulatedProbe, TrueServer, contending, sleeping
from brim.records import Overheads, Slo, Status
from judging.rows import ROW_DTYPE, Rows
from judging.slo_estimate import STEP, correlation, explain
from judging.slo_model import Model, Profile, fit, ladder, seconds_of
from judging.slo_observed import Floats, Observed, block_means, latencies, over_shares, parts
from judging.slo_predict import foresee, relax_s, typical_schedule
from judging.slo_trials import Trial, bracketed, given_data, misfit, next_rate, segments, warm_s
from queueing import arrivals
from queueing.batcher import NONE, Batcher, Service

MS = 1_000_000
START_NS = 7_000 * MS
SLO = Slo(limit_ms=100.0, percentile=99.0)


def observed(offsets_ms: list[int], rows: list[tuple[int, int, Status]]) -> Observed:
    """A load with this schedule, of which these (due, taken, status) requests, in ms, were sent."""
    table = np.zeros(len(rows), ROW_DTYPE).view(Rows)
    for row, (due, taken, status) in zip(table, rows, strict=True):
        row["intended_ns"] = row["sent_ns"] = START_NS + due * MS
        row["done_ns"], row["status"], row["items"] = START_NS + (due + taken) * MS, status, 1
    return Observed(
        load=0, start_ns=START_NS, end_ns=START_NS + 1000 * MS, rows=table,
        offsets_ns=np.array(offsets_ms, dtype=np.int64) * MS,
    )  # fmt: skip


def quiet(server: TrueServer) -> TrueServer:
    return replace(server, service_cv=0.0, way_ms=0.0)


def profiled(server: TrueServer, seconds: float = 2.0) -> Profile:
    probe = SimulatedProbe(server, seed=1)
    return fit([(n, probe.closed(n, seconds)) for n in ladder(server.batcher)], server.batcher)


def known(service: Service, batcher: Batcher, overheads: Overheads = NONE) -> Model:
    return Model(batcher=batcher, service=service, overheads=overheads, noise=np.ones(1))


# ---------------------------------------------------------------------------- observed


def test_what_was_rejected_failed_timed_out_or_never_sent_is_over_any_limit() -> None:
    statuses = (Status.REJECTED, Status.TIMED_OUT, Status.FAILED, Status.CANCELLED)
    ended = [(10 * n, 5, status) for n, status in enumerate(statuses)]
    found = latencies(observed([0, 10, 20, 30, 40, 50], [*ended, (40, 5, Status.OK)]))
    assert found.tolist() == [math.inf] * 4 + [0.005, math.inf]


def test_latency_counts_from_the_intended_time_however_late_a_request_is_sent() -> None:
    load = observed([0], [(0, 30, Status.OK)])
    load.rows["sent_ns"] += 25 * MS
    assert latencies(load).tolist() == [0.030]


def test_requests_due_in_the_same_nanosecond_are_told_apart() -> None:
    load = observed([5, 5, 5, 9], [(5, 1, Status.OK), (9, 2, Status.OK), (5, 3, Status.OK)])
    assert sorted(latencies(load).tolist()) == [0.001, 0.002, 0.003, math.inf]
    assert latencies(load)[3] == 0.002


def test_over_shares_and_block_means_by_hand() -> None:
    taken = np.array([0.05, 0.15, math.inf, 0.1, 0.1, 0.3])
    firsts = parts(np.arange(6) / 10, 0.0, 0.6, 2)
    assert over_shares(taken, firsts, SLO).tolist() == pytest.approx([2 / 3, 1 / 3])
    assert block_means(taken, firsts, SLO).tolist() == pytest.approx([(0.5 + 1.5 + 2) / 3, (1 + 1 + 2) / 3])


# ---------------------------------------------------------------------------- profile


def test_a_profile_finds_service_times_and_overheads_of_a_server_without_noise() -> None:
    batcher = Batcher(8, 1)
    overheads = Overheads(occupancy_ms=0.3, occupancy_per_item_ms=0.05, additive_ms=0.4)
    service = Service.of(batcher, lambda size: 0.010 + 0.001 * size)
    server = TrueServer(
        name="affine", batcher=batcher, service=service, overheads=overheads, service_cv=0.0, way_ms=0.0
    )
    profile = profiled(server)
    model = profile.model
    assert model is not None and profile.rejected == ""
    assert model.service.seconds == pytest.approx(service.seconds, rel=1e-3)
    assert model.overheads.occupancy_ms == pytest.approx(0.3, abs=0.05)
    assert model.overheads.occupancy_per_item_ms == pytest.approx(0.05, abs=0.01)
    assert model.overheads.additive_ms == pytest.approx(0.4, abs=0.05)
    assert profile.capacity == pytest.approx(8 / 0.0187, rel=0.005)
    assert model.capacity == pytest.approx(8 / 0.0187, rel=0.005)


def test_instances_that_share_one_rate_of_work_are_seen_to_slow_each_other_down() -> None:
    server = quiet(contending())
    model = profiled(server).model
    assert model is not None
    assert model.service.seconds == pytest.approx(server.service.seconds, rel=0.02)


def test_a_throughput_that_the_service_times_do_not_explain_rejects_the_model() -> None:
    probe = SimulatedProbe(quiet(sleeping(1)), seed=1)
    loads = [(n, probe.closed(n, 2.0)) for n in (1, 2, 8)]
    hidden = replace(probe.server, overheads=replace(probe.server.overheads, occupancy_ms=12.0))
    profile = fit([*loads, (16, SimulatedProbe(hidden, seed=1).closed(16, 2.0))], probe.server.batcher)
    assert "the client, the transport or copies are the limit" in profile.rejected


def test_a_client_that_holds_back_a_server_of_single_requests_rejects_the_model() -> None:
    """Nothing but a request alone tells that the instance is not what takes the time."""
    batcher = Batcher(max_batch=1)
    server = replace(quiet(sleeping(1)), batcher=batcher, service=Service(np.array([[0.010]])))
    loads = [(n, SimulatedProbe(server, seed=1).closed(n, 2.0)) for n in ladder(batcher)]
    assert fit(loads, batcher).rejected == ""
    slower = replace(server, overheads=replace(server.overheads, occupancy_ms=6.0))
    profile = fit([loads[0], (2, SimulatedProbe(slower, seed=1).closed(2, 2.0))], batcher)
    assert "a request alone" in profile.rejected and "the client, the transport or copies" in profile.rejected


def test_a_machine_that_runs_faster_or_slower_in_another_load_is_no_reason_to_reject_the_model() -> None:
    server = quiet(sleeping(1))
    loads = []
    for n, pace in ((1, 1.0), (2, 0.95), (8, 1.05), (16, 0.92), (32, 1.08)):
        drifted = replace(server, service=Service(server.service.seconds * pace))
        loads.append((n, SimulatedProbe(drifted, seed=1).closed(n, 2.0)))
    assert fit(loads, server.batcher).rejected == ""


def test_without_statistics_of_batches_there_is_a_capacity_but_no_model() -> None:
    probe = SimulatedProbe(quiet(sleeping(1)), seed=1)
    loads = [(n, replace(probe.closed(n, 2.0), reads=())) for n in (1, 16)]
    profile = fit(loads, probe.server.batcher)
    assert profile.model is None and "tell nothing of its batches" in profile.rejected
    assert profile.capacity == pytest.approx(8 / 0.0207, rel=0.02)


def test_a_slow_server_is_profiled_for_ten_full_batches_but_not_for_ever() -> None:
    assert seconds_of(Batcher(8, 1), 0.020) == 2.0
    assert seconds_of(Batcher(4, 1), 0.1) == pytest.approx(4.0)
    assert seconds_of(Batcher(64, 1), 1.0) == 6.0


# ---------------------------------------------------------------------------- prediction


def test_the_rate_of_memoryless_service_is_foreseen_as_the_closed_form_has_it() -> None:
    batcher = Batcher(1, 1)
    noise = np.random.default_rng(5).standard_exponential(20_000)
    model = replace(known(Service.of(batcher, lambda size: 0.001), batcher), noise=noise / noise.mean())
    found = foresee(model, Slo(limit_ms=20.0), seed=3, requests=500_000)
    assert found is not None
    truth = 1000 - math.log(100) / 0.020
    assert abs(math.log(found.items_per_s / truth)) < 4 * found.error < 0.04
    assert found.kappa == pytest.approx(truth * 0.020, rel=0.15)  # P(W > L) = exp(-(mu - r) L)


def test_the_rate_of_a_batch_server_is_foreseen_as_an_independent_simulation_found_it() -> None:
    """10 ms a batch of up to 8, p99 of 50 ms: 736/s, some 47% more violations for each per cent of load."""
    batcher = Batcher(8, 1)
    found = foresee(known(Service.of(batcher, lambda size: 0.010), batcher), Slo(limit_ms=50.0), seed=3)
    assert found is not None
    assert found.items_per_s == pytest.approx(736, rel=0.006)
    assert found.kappa == pytest.approx(47, rel=0.2)


def test_no_rate_is_foreseen_where_even_a_lone_batch_takes_too_long() -> None:
    batcher = Batcher(1, 1)
    assert foresee(known(Service.of(batcher, lambda size: 0.2), batcher), SLO, seed=1, requests=20_000) is None


def test_a_typical_schedule_holds_in_each_segment_about_what_the_slo_allows() -> None:
    batcher = Batcher(8, 1)
    model = known(Service.of(batcher, lambda size: 0.020), batcher)
    offsets_ns = typical_schedule(model, SLO, rate=367.0, warm_s=4.0, seconds=24.0, segments=5, pace=1.0, seed=2)
    again = typical_schedule(model, SLO, rate=367.0, warm_s=4.0, seconds=24.0, segments=5, pace=1.0, seed=2)
    assert np.array_equal(offsets_ns, again)
    assert offsets_ns.dtype == np.int64 and np.all(np.diff(offsets_ns) >= 0) and offsets_ns[-1] < 24e9
    assert offsets_ns.size == pytest.approx(367 * 24, rel=0.05)
    offsets_s = offsets_ns / 1e9
    shares = over_shares(model.latencies(offsets_s, 0), parts(offsets_s, 4.0, 24.0, 5), SLO)
    assert np.all((shares > 0.003) & (shares < 0.03))


# ---------------------------------------------------------------------------- estimation


def shifted(level: Floats, kappa: float, step: int) -> Floats:
    """Over-shares that fall by kappa per cent for each per cent that the rate at the SLO is higher."""
    moved: Floats = level * math.exp(-kappa * step * STEP)
    return moved


def test_the_shift_explains_the_mean_over_share_that_was_seen() -> None:
    level = np.array([0.012, 0.008, 0.011, 0.009])
    found = explain(lambda step: shifted(level, 50.0, step), 1.5 * level)
    assert found is not None and found.value == pytest.approx(-math.log(1.5) / 50, rel=0.01)
    assert found.error == pytest.approx(0.0, abs=1e-4)  # every segment says the same


def test_the_error_of_the_shift_is_that_of_the_mean_share_over_kappa() -> None:
    random = np.random.default_rng(1)
    level = np.full(200, 0.01)
    seen = level * (1 + 0.3 * random.standard_normal(200))
    found = explain(lambda step: shifted(level, 50.0, step), seen)
    assert found is not None
    assert found.error == pytest.approx(float(seen.std(ddof=1)) / math.sqrt(200) / seen.mean() / 50, rel=0.1)
    assert found.half_width(0.05, 0.01) == pytest.approx(math.hypot(1.972 * found.error, 1.960 * 0.01), rel=1e-3)


def test_what_no_shift_explains_has_none_and_what_shows_nothing_has_no_error() -> None:
    level = np.full(5, 0.01)
    assert explain(lambda step: shifted(level, 1.0, step), np.full(5, 0.9)) is None
    nothing = explain(lambda step: np.maximum(0.0, level - 1e-4 * step), np.zeros(5))
    assert nothing is not None and math.isinf(nothing.error)


def test_series_that_do_not_vary_have_no_correlation() -> None:
    assert correlation(np.zeros(4), np.arange(4.0)) == 0.0
    assert correlation(np.arange(4.0), 2 * np.arange(4.0)) == pytest.approx(1.0)


def trial(rate: float, share: float, *, requests: int = 10_000, slo: Slo = SLO) -> Trial:
    """Every segment with this share over the limit."""
    offsets_s = np.arange(requests) / rate
    late = np.zeros(requests, dtype=bool)
    late[np.rint(np.arange(0.5, requests * share) / share).astype(int) if share else []] = True
    return Trial(
        load=0, rate=rate, warm_s=0.0, seconds=requests / rate, offsets_s=offsets_s,
        latency_s=np.where(late, 2.0, 0.5) * slo.limit_ms / 1e3, segments=10,
    )  # fmt: skip


def test_data_alone_find_the_rate_by_the_tail_of_a_queue() -> None:
    """M/M/1: P(W > L) = exp(-(mu - r) L), so of 790/s the share is known, and so is the rate that has 1%."""
    slo = Slo(limit_ms=20.0)
    answer = given_data([trial(790.0, math.exp(-0.21 * 20), slo=slo)], 1000.0, slo, 0.05)
    assert answer is not None
    assert answer.items_per_s == pytest.approx(1000 - math.log(100) / 0.02, rel=0.005)
    assert 0.0 < answer.half_width < 0.2


def test_without_a_model_the_search_goes_where_the_share_points_or_halves_its_bracket() -> None:
    slo = Slo(limit_ms=20.0)
    pointed = next_rate([trial(790.0, math.exp(-0.21 * 20), slo=slo)], 1000.0, slo)
    assert pointed == pytest.approx(1000 - math.log(100) / 0.02, rel=0.01)
    low, high = trial(600.0, 0.0), trial(950.0, 0.9)
    assert bracketed([low, high], 1000.0, SLO) == (600.0, 950.0)
    assert next_rate([low, high], 1000.0, SLO) == pytest.approx(math.sqrt(600.0 * 950.0))
    assert next_rate([high, low], 1000.0, SLO) == pytest.approx(math.sqrt(600.0 * 950.0))


def replayed(model: Model, noise: float) -> Trial:
    offsets_s = arrivals.poisson(350.0, 25.0, 4) / 1e9
    factors = np.random.default_rng(2).gamma(noise**-2, noise**2, 100_000)
    slower = replace(model, noise=factors)
    return Trial(
        load=0, rate=350.0, warm_s=5.0, seconds=25.0, offsets_s=offsets_s, latency_s=slower.latencies(offsets_s, 9),
        segments=5,
    )  # fmt: skip


def test_a_model_fits_where_it_follows_the_queue_and_is_rejected_where_it_does_not() -> None:
    batcher = Batcher(8, 1)
    model = known(Service.of(batcher, lambda size: 0.020), batcher)
    assert misfit([replayed(model, 0.03)], model, SLO, 0.0) == ""
    assert "correlate" in misfit([replayed(model, 2.0)], model, SLO, 0.0)
    assert "would have to move by +35%" in misfit([replayed(model, 0.03)], model, SLO, 0.3)


def test_a_constant_latency_needs_no_correlation() -> None:
    batcher = Batcher(8, 1)
    model = known(Service.of(batcher, lambda size: 0.020), batcher)
    idle = replace(
        replayed(model, 0.03), rate=0.5, offsets_s=np.arange(12, dtype=np.float64) * 2.0, latency_s=np.full(12, 0.021)
    )
    assert misfit([idle], model, SLO, 0.0) == ""


def test_trials_leave_out_what_a_queue_remembers() -> None:
    assert relax_s(760.0, 800.0) == pytest.approx(0.95)  # 5% below 800/s
    assert warm_s(760.0, 800.0, 60.0) == pytest.approx(4.75)
    assert warm_s(790.0, 800.0, 60.0) == pytest.approx(12.0)  # a fifth of the trial at most
    assert segments(760.0, 800.0, 30.0) == 6
    assert (segments(400.0, 800.0, 30.0), segments(790.0, 800.0, 30.0)) == (10, 5)
