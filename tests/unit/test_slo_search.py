"""The search for the rate at an SLO on simulated servers whose truth is known and whose overheads it is not told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.simulated_probe import SimulatedProbe, TrueServer, memoryless, sleeping, slow
from benchmarks.slo_coverage import CASES, searched
from brim.errors import Interrupted, Lost, NoValidNumber
from brim.records import SloRate, Status
from experiments.measure.slo import Wanted, search
from judging.slo_model import ladder
from judging.slo_observed import Numbers, Observed

SIMULATED = 100_000
SEARCHES = 40


@dataclass(slots=True)
class Faulty:
    """A probe that raises, or whose requests fail, from a given load on."""

    probe: SimulatedProbe
    from_load: int
    raises: BaseException | None = None
    status: Status = Status.FAILED
    share: float = 0.5
    loads: list[tuple[int, float]] = field(default_factory=list)

    def closed(self, concurrency: int, seconds: float) -> Observed:
        return self._spoilt(self.probe.closed(concurrency, seconds))

    def open(self, offsets_ns: Numbers, rate_per_s: float, seconds: float) -> Observed:
        return self._spoilt(self.probe.open(offsets_ns, rate_per_s, seconds))

    def _spoilt(self, seen: Observed) -> Observed:
        if seen.load >= self.from_load:
            if self.raises is not None:
                raise self.raises
            seen.rows["status"][:: round(1 / self.share)] = self.status
        return seen


def found(
    server: TrueServer, *, fault: Faulty | None = None, seed: int = 1, seconds: float = 60.0,
    limit_ms: float | None = None, percentile: float | None = None, model_free: bool = False,
) -> SloRate:  # fmt: skip
    probe = fault.probe if fault else SimulatedProbe(server, seed)
    wanted = Wanted(
        limit_ms=limit_ms, percentile=percentile, seconds=seconds, model_free=model_free, seed=seed,
        simulated=SIMULATED,
    )  # fmt: skip
    return search(fault or probe, server.batcher, wanted, clock=probe.clock)


def faulty(from_load: int, **told: object) -> Faulty:
    return replace(Faulty(SimulatedProbe(sleeping(1), seed=1), from_load), **told)  # type: ignore[arg-type]


def test_searches_of_a_sleeping_server_are_right_within_2_per_cent_and_their_intervals_cover() -> None:
    case = CASES[0]
    truth = case.truth(runs=3)
    searches = [searched(case, truth, seed, simulated=SIMULATED) for seed in range(SEARCHES)]
    assert {(one.verdict, one.given) for one in searches} == {("resolved", "model")}
    assert max(abs(one.off or 0.0) for one in searches) < 0.02
    assert max(one.seconds for one in searches) < 62.0
    covered = sum(bool(one.covered) for one in searches)
    assert binom.cdf(covered, SEARCHES, 0.92) > 0.01
    assert np.mean([one.half_width for one in searches if one.half_width]) < 0.02


def test_two_instances_are_searched_as_well_as_one() -> None:
    case = CASES[1]
    truth = case.truth(runs=2)
    for seed in range(3):
        one = searched(case, truth, seed, simulated=SIMULATED)
        assert one.off is not None and abs(one.off) < 0.02 and one.seconds < 62.0


def test_memoryless_service_rejects_the_model_and_the_data_alone_come_near_the_closed_form() -> None:
    answer = found(memoryless(), limit_ms=20.0, percentile=99.0, seed=3)
    assert "correlate" in answer.model_rejected and answer.given == "data"
    assert answer.items_per_s == pytest.approx(1000 - math.log(100) / 0.020, rel=0.12)
    assert answer.seconds_spent <= 61.0


def test_asked_to_do_without_a_model_it_claims_none() -> None:
    answer = found(sleeping(1), limit_ms=100.0, model_free=True)
    assert (answer.given, answer.model_rejected) == ("data", "")
    assert answer.items_per_s == pytest.approx(354.7, rel=0.1)
    assert all(trial.foreseen_share is None for trial in answer.trials)


def test_the_default_slo_is_five_full_batches_and_p95_of_a_slow_server() -> None:
    fast, late = found(sleeping(1)), found(slow())
    assert (fast.slo.percentile, late.slo.percentile) == (99.0, 95.0)
    assert fast.slo.limit_ms == 100.0  # 5 x 20.7, to two digits
    assert late.slo.limit_ms == pytest.approx(5 * 332.5, rel=0.03) and late.slo.limit_ms % 100 == 0


def test_too_little_time_is_said_to_be_too_little() -> None:
    answer = found(slow(), seconds=22.0)
    assert answer.verdict == "not_resolvable" and "SLO rate not resolvable in 22 s" in answer.reason


def test_a_limit_below_the_service_time_is_unattainable_and_the_service_time_is_named() -> None:
    answer = found(sleeping(1), limit_ms=15.0)
    assert (answer.verdict, answer.items_per_s, answer.ci95) == ("unattainable", None, None)
    assert "20" in answer.reason and "in the engine" in answer.reason


def test_a_server_that_fails_requests_is_failing_alone_or_under_load() -> None:
    assert found(sleeping(1), fault=faulty(0), limit_ms=100.0).verdict == "failing"
    under_load = found(sleeping(1), fault=faulty(4), limit_ms=100.0)
    assert under_load.verdict == "failing" and "failed" in under_load.reason and len(under_load.trials) == 1


def test_rejected_requests_count_as_over_the_limit() -> None:
    """2% are rejected at any rate, so no rate leaves 1%."""
    answer = found(sleeping(1), fault=faulty(4, status=Status.REJECTED, share=0.02), limit_ms=100.0, seconds=40.0)
    assert answer.trials[0].over_share > 0.019
    assert answer.verdict == "not_resolvable" or (answer.items_per_s or 0.0) < 354.7


def test_a_bounded_queue_is_part_of_the_model() -> None:
    bounded = replace(sleeping(1), batcher=replace(sleeping(1).batcher, max_queue=24))
    answer = found(bounded, limit_ms=100.0)
    assert answer.given == "model" and answer.verdict == "resolved"
    assert bounded.over_share(answer.items_per_s or 0.0, answer.slo, 2_000_000, 9) == pytest.approx(0.01, rel=0.6)


@pytest.mark.parametrize(("raised", "verdict"), [(Lost("it went away"), "server_lost"), (Interrupted(15), "aborted")])
def test_what_was_found_before_the_end_is_kept(raised: BaseException, verdict: str) -> None:
    answer = found(sleeping(1), fault=faulty(4, raises=raised), limit_ms=100.0)
    assert answer.verdict == verdict and answer.reason == str(raised)
    assert answer.capacity_items_per_s == pytest.approx(8 / 0.0207, rel=0.02) and answer.service


def test_an_end_before_the_default_slo_is_known_has_no_record() -> None:
    with pytest.raises(NoValidNumber, match="it went away"):
        found(sleeping(1), fault=faulty(1, raises=Lost("it went away")))


def test_loads_that_were_made_already_are_not_made_again() -> None:
    server = sleeping(1)
    before = SimulatedProbe(server, seed=1)
    ready = [(in_flight, before.closed(in_flight, 2.0)) for in_flight in ladder(server.batcher)]
    probe = SimulatedProbe(server, seed=2)
    wanted = Wanted(limit_ms=100.0, simulated=SIMULATED)
    told: list[str] = []
    answer = search(probe, server.batcher, wanted, clock=probe.clock, ready=ready, progress=told.append)
    assert answer.verdict == "resolved" and probe.loads == len(answer.trials)
    assert not any(text.startswith("profile") for text in told) and told[0].startswith("trial 1: ")


def test_a_late_sender_is_named_beside_the_answer() -> None:
    late = LateSender(SimulatedProbe(sleeping(1), seed=1))
    wanted = Wanted(limit_ms=100.0, simulated=SIMULATED)
    answer = search(late, sleeping(1).batcher, wanted, clock=late.probe.clock)
    assert "the sender was late: p99 8 ms" in answer.reason and "1 requests were never sent" in answer.reason


@dataclass(slots=True)
class LateSender:
    """Every open-loop request leaves 8 ms late, and the last one never."""

    probe: SimulatedProbe

    def closed(self, concurrency: int, seconds: float) -> Observed:
        return self.probe.closed(concurrency, seconds)

    def open(self, offsets_ns: Numbers, rate_per_s: float, seconds: float) -> Observed:
        seen = self.probe.open(offsets_ns, rate_per_s, seconds)
        seen.rows["sent_ns"] += 8_000_000
        return replace(seen, rows=seen.rows[seen.rows["intended_ns"] < seen.rows["intended_ns"].max()])
