"""The search for the rate at an SLO on simulated servers whose truth is known and whose overheads it is not told."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

import pytest

from benchmarks.simulated_probe import SimulatedProbe, TrueServer, memoryless, sleeping, slow
from brim.errors import Interrupted, Lost, NoValidNumber
from brim.records import ServiceTime, Slo, SloRate, Status
from experiments.measure.slo import search
from experiments.measure.slo_profile import End, Sought, require_attainable
from judging.slo_model import ladder
from judging.slo_observed import Numbers, Observed, throughput
from queueing import arrivals
from queueing.batcher import Service

SIMULATED = 100_000


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
    sought = Sought(
        limit_ms=limit_ms, percentile=percentile, seconds=seconds, model_free=model_free, seed=seed,
        simulated=SIMULATED,
    )  # fmt: skip
    return search(fault or probe, server.batcher, sought, clock=probe.clock)


def faulty(from_load: int, **told: object) -> Faulty:
    return replace(Faulty(SimulatedProbe(sleeping(1), seed=1), from_load), **told)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("limit_ms", [1_000.0, 20_000.0])
def test_a_limit_wider_than_any_queue_below_the_capacity_leaves_the_capacity_alone_and_gives_no_figure(
    limit_ms: float,
) -> None:
    """Beyond the capacity a queue only grows, and its share over the limit tells how long it was watched."""
    answer = found(sleeping(1), limit_ms=limit_ms)
    assert (answer.verdict, answer.items_per_s, answer.ci95) == ("not_resolvable", None, None)
    assert "the capacity alone sets the rate" in answer.reason and answer.trials == ()


def test_a_limit_of_many_batches_has_a_rate_below_the_capacity() -> None:
    answer = found(sleeping(1), limit_ms=300.0)
    assert answer.items_per_s is not None and answer.capacity_items_per_s is not None
    assert 0.94 < answer.items_per_s / answer.capacity_items_per_s < 0.995


def test_a_default_limit_beyond_the_deadline_of_a_request_is_said_to_be() -> None:
    probe = SimulatedProbe(slow(), 1)
    sought = Sought(seconds=60.0, seed=1, simulated=SIMULATED, deadline_s=1.0)
    answer = search(probe, slow().batcher, sought, clock=probe.clock)
    assert answer.verdict == "not_resolvable" and "raise request_timeout_seconds" in answer.reason
    assert answer.slo.limit_ms > 1000 and answer.trials == ()


def test_too_little_time_is_said_to_be_too_little() -> None:
    answer = found(slow(), seconds=22.0)
    assert answer.verdict == "not_resolvable" and "SLO rate not resolvable in 22 s" in answer.reason


def test_a_limit_below_the_service_time_is_unattainable_and_the_service_time_is_named() -> None:
    answer = found(sleeping(1), limit_ms=15.0)
    assert (answer.verdict, answer.items_per_s, answer.ci95) == ("unattainable", None, None)
    assert "20" in answer.reason and "in the engine" in answer.reason


def test_a_batch_whose_mean_exceeds_the_median_of_a_request_is_all_of_it_and_no_more() -> None:
    single = SimulatedProbe(sleeping(1), seed=1).closed(1, 2.0)

    def told(ms: float) -> str:
        table = (ServiceTime(items=1, busy=1, ms=ms, batches=9),)
        with pytest.raises(End) as end:
            require_attainable(single, Slo(limit_ms=15.0), table)
        return end.value.reason

    assert "ms, 18 ms of that in the engine: no rate" in told(18.0)
    assert "ms, all of that in the engine: no rate" in told(22.5)


def test_a_server_that_fails_requests_is_failing_alone_or_under_load() -> None:
    assert found(sleeping(1), fault=faulty(0), limit_ms=100.0).verdict == "failing"
    under_load = found(sleeping(1), fault=faulty(4), limit_ms=100.0)
    assert under_load.verdict == "failing" and "failed" in under_load.reason and len(under_load.trials) == 1


def test_rejected_requests_count_as_over_the_limit() -> None:
    """2% are rejected at any rate, so no rate leaves 1%."""
    answer = found(sleeping(1), fault=faulty(4, status=Status.REJECTED, share=0.02), limit_ms=100.0, seconds=40.0)
    assert all(trial.over_share > 0.019 for trial in answer.trials) and len(answer.trials) > 1
    assert (answer.verdict, answer.items_per_s) == ("not_resolvable", None)
    assert "not answered well, where it foresees 0.00%" in answer.model_rejected
    assert "the lowest rate tried, have 2." in answer.reason


def test_a_server_that_rejects_a_quarter_at_every_rate_is_told_to_by_count_and_share() -> None:
    answer = found(sleeping(1), fault=faulty(4, status=Status.REJECTED, share=0.25), limit_ms=100.0, seconds=40.0)
    told = re.search(r"in the trials (\d+) \(25\.0%\) rejected of (\d+) requests", answer.reason)
    assert answer.verdict == "not_resolvable" and told is not None
    assert int(told[1]) == pytest.approx(int(told[2]) / 4, abs=len(answer.trials))
    assert int(told[2]) >= sum(trial.requests for trial in answer.trials) > 1000  # those of the warm-up, too


def test_requests_that_are_rejected_one_at_a_time_are_named_as_such() -> None:
    answer = found(sleeping(1), fault=faulty(0, status=Status.REJECTED, share=0.25), limit_ms=100.0)
    assert answer.verdict == "failing"
    assert re.search(r"of single requests were not answered well: \d+ \(2\d\.\d%\) rejected of \d+", answer.reason)


def test_a_queue_that_rejects_less_than_the_slo_allows_is_no_reason() -> None:
    answer = found(sleeping(1), fault=faulty(4, status=Status.REJECTED, share=0.005), limit_ms=100.0, seconds=24.0)
    assert answer.verdict == "not_resolvable" and answer.trials and "rejected" not in answer.reason


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
    sought = Sought(limit_ms=100.0, simulated=SIMULATED)
    told: list[str] = []
    answer = search(probe, server.batcher, sought, clock=probe.clock, ready=ready, progress=told.append)
    assert answer.verdict == "resolved" and probe.loads == len(answer.trials)
    assert not any(text.startswith("profile") for text in told) and told[0].startswith("trial 1: ")


# ---------------------------------------------------------------------------- the client's own fault


@dataclass(slots=True)
class LateSender:
    """In some open loops, counted from 1, every request leaves 12 ms late, and the last one never."""

    probe: SimulatedProbe
    late_loads: range
    outstanding: int | None = None
    opened: int = 0

    def closed(self, concurrency: int, seconds: float) -> Observed:
        return self.probe.closed(concurrency, seconds)

    def open(self, offsets_ns: Numbers, rate_per_s: float, seconds: float) -> Observed:
        seen = self.probe.open(offsets_ns, rate_per_s, seconds)
        self.opened += 1
        if self.opened not in self.late_loads:
            return seen
        seen.rows["sent_ns"] += 12_000_000
        rows = seen.rows[seen.rows["intended_ns"] < seen.rows["intended_ns"].max()]
        return replace(seen, rows=rows, outstanding=self.outstanding)


def searched_late(late: LateSender, *, model_free: bool = False) -> SloRate:
    sought = Sought(limit_ms=100.0, simulated=SIMULATED, model_free=model_free)
    return search(late, sleeping(1).batcher, sought, clock=late.probe.clock)


@pytest.mark.parametrize("model_free", [False, True])
def test_trials_that_the_client_is_late_with_resolve_nothing_and_the_reason_is_the_client(model_free: bool) -> None:
    late = LateSender(SimulatedProbe(sleeping(1), seed=1), range(1, 99))
    answer = searched_late(late, model_free=model_free)
    assert (answer.verdict, answer.trials, late.opened) == ("not_resolvable", (), 2)
    assert answer.reason.startswith("the client could not keep to the schedule")
    assert "lag p99 12 ms, 1 never sent" in answer.reason
    assert answer.seconds_spent < 75.0


def test_a_trial_that_the_client_was_late_with_once_is_sent_again_and_left_out() -> None:
    late = LateSender(SimulatedProbe(sleeping(1), seed=1), range(1, 2))
    answer = searched_late(late)
    assert answer.verdict == "resolved" and answer.items_per_s == pytest.approx(354.7, rel=0.02)
    assert answer.reason == "" and len(answer.trials) == late.opened - 1


def test_a_deciding_trial_that_shows_the_client_leaves_what_the_one_before_it_told_unresolved() -> None:
    late = LateSender(SimulatedProbe(sleeping(1), seed=36), range(2, 99))  # a seed that needs two trials
    answer = searched_late(late)
    assert (late.opened, len(answer.trials)) == (3, 1)
    assert answer.verdict == "not_resolvable" and "the client could not keep" in answer.reason
    assert answer.ci95 is not None and answer.ci95[1] / answer.ci95[0] < 1.1  # else it would not be resolved anyway


def test_a_request_that_waits_for_a_place_in_flight_waits_for_the_server() -> None:
    late = LateSender(SimulatedProbe(sleeping(1), seed=1), range(1, 99), outstanding=1)
    answer = searched_late(late)
    assert answer.trials and "client" not in answer.reason


# ---------------------------------------------------------------------------- no more than the user allows


@dataclass(slots=True)
class Capped:
    """Closed loops come no faster than so many a second, as senders keep a host's cap; open ones are refused beyond."""

    probe: SimulatedProbe
    most_per_s: float
    opened: list[tuple[float, int, float]] = field(default_factory=list)

    def closed(self, concurrency: int, seconds: float) -> Observed:
        free = self.probe.closed(concurrency, seconds)
        if throughput(free, 1) <= self.most_per_s:
            return free
        paced = self.probe.open(arrivals.constant(self.most_per_s, seconds), self.most_per_s, seconds)
        return replace(paced, offsets_ns=None)

    def open(self, offsets_ns: Numbers, rate_per_s: float, seconds: float) -> Observed:
        self.opened.append((rate_per_s, offsets_ns.size, seconds))
        return self.probe.open(offsets_ns, rate_per_s, seconds)


def capped(most_per_s: float, *, limit_ms: float | None = 100.0, model_free: bool = False) -> SloRate:
    loader = Capped(SimulatedProbe(sleeping(1), seed=1), most_per_s)
    sought = Sought(limit_ms=limit_ms, simulated=SIMULATED, most_per_s=most_per_s, model_free=model_free)
    answer = search(loader, sleeping(1).batcher, sought, clock=loader.probe.clock)
    assert loader.opened
    assert all(rate <= most_per_s and sent <= most_per_s * seconds for rate, sent, seconds in loader.opened)
    return answer


@pytest.mark.parametrize("model_free", [False, True])
def test_a_cap_that_meets_the_slo_ends_the_search_and_is_named_as_the_users_own(model_free: bool) -> None:
    answer = capped(200.0, model_free=model_free)
    assert (answer.verdict, answer.ci95) == ("not_resolvable", None)
    assert answer.items_per_s == pytest.approx(200 - 3 * 200**0.5)  # random arrivals have seconds beyond their mean
    assert answer.capacity_items_per_s is None  # 200/s came of the full batches, too, and are no capacity
    assert "157.6/s meet it, so the rate is at least that" in answer.reason
    assert "the 200/s that max_rate_per_s allows this host" in answer.reason
    assert len(answer.trials) == 1


def test_a_cap_between_the_rate_and_the_capacity_resolves_nothing_as_no_capacity_is_known() -> None:
    answer = capped(365.0, limit_ms=45.0)
    assert (answer.verdict, answer.items_per_s, answer.capacity_items_per_s) == ("not_resolvable", None, None)
    assert "the 365/s that max_rate_per_s allows this host is too little to show it" in answer.reason


def test_a_cap_near_the_rate_is_the_answer_only_as_a_bound() -> None:
    """Full batches give 386/s, of which 382 may be sent: the model fits and has 355, beyond what may be tried."""
    answer = capped(382.0)
    assert (answer.verdict, answer.ci95) == ("not_resolvable", None)
    assert answer.items_per_s == pytest.approx(382 - 3 * 382**0.5)
    assert answer.trials[-1].foreseen_share is not None
    assert "so the rate is at least that" in answer.reason


def test_a_cap_beyond_the_capacity_changes_nothing() -> None:
    answer = capped(1000.0)
    assert answer.verdict == "resolved" and answer.items_per_s == pytest.approx(354.7, rel=0.02)
    assert answer.capacity_items_per_s == pytest.approx(8 / 0.0207, rel=0.02)


def test_the_default_slo_under_a_cap_rests_on_what_a_batch_takes_and_not_on_the_cap() -> None:
    assert capped(150.0, limit_ms=None).slo.limit_ms == 100.0


# ---------------------------------------------------------------------------- slow models


def sleepy(seconds: float) -> TrueServer:
    server = sleeping(1)
    return replace(server, service=Service.of(server.batcher, lambda size: seconds))


@pytest.mark.parametrize("limit_ms", [None, 20_000.0])
def test_a_server_that_takes_seconds_a_batch_is_too_slow_to_resolve_and_does_not_fail(limit_ms: float | None) -> None:
    answer = found(sleepy(4.0), limit_ms=limit_ms)
    assert (answer.verdict, answer.items_per_s) == ("not_resolvable", None)
    assert answer.reason.startswith("SLO rate not resolvable in 60 s: a single request takes 4")
    assert (answer.slo.limit_ms, answer.slo.percentile) == (20_000.0, 95.0 if limit_ms is None else 99.0)


def test_a_profile_for_which_the_time_does_not_suffice_is_not_made_to_its_end() -> None:
    answer = found(sleepy(4.0), seconds=20.0)
    assert answer.verdict == "not_resolvable" and answer.seconds_spent < 30.0  # all four loads take 36 s


def test_with_more_time_the_loads_of_a_profile_are_longer_and_show_a_slow_servers_capacity() -> None:
    answer = found(sleepy(1.5), seconds=600.0)
    assert answer.capacity_items_per_s == pytest.approx(8 / 1.5007, rel=0.05)
    assert answer.slo.limit_ms == pytest.approx(5 * 1500.7, rel=0.05)
    assert found(sleepy(1.5)).verdict == "not_resolvable"


def test_an_slo_below_what_such_a_server_takes_is_unattainable_all_the_same() -> None:
    answer = found(sleepy(4.0), limit_ms=100.0)
    assert answer.verdict == "unattainable" and "alone takes 40" in answer.reason


def test_requests_beyond_their_deadline_are_too_slow_and_no_failure() -> None:
    answer = found(sleeping(1), fault=faulty(0, status=Status.TIMED_OUT, share=1.0), limit_ms=100.0)
    assert answer.verdict == "not_resolvable" and "a single request takes" in answer.reason
