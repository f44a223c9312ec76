"""Goodput, recovery and queue limits against servers whose answer is arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brim.records import Overheads, OverloadPoint, ServiceTime, Slo, SloRate, Status
from experiments.overload.run import Sent
from judging.overload import QUEUE_FULL, QUEUE_TIMEOUT, Burst, goodput, recovery
from judging.queue_choice import choose
from judging.queue_limits import (
    InTime,
    Limits,
    Proposal,
    batch_ms,
    candidates,
    fitting_queue,
    model_of,
    propose,
    service_of,
)
from judging.rows import ROW_DTYPE, Rows
from judging.slo_model import Model
from judging.slo_observed import Observed, sent_late
from queueing.arrivals import Offsets, constant, poisson
from queueing.batcher import NONE, STEADY, Batcher, Service
from tests.unit.queued import START_NS, answered

SLO = Slo(limit_ms=100)
#: 20 ms a batch of 8: 400 a second.
SLEEP = Batcher(max_batch=8)
SERVICE_S, CAPACITY = 0.02, 400.0
#: One at a time, 10 ms each: 100 a second.
SINGLE, SINGLE_S = Batcher(max_batch=1), 0.01


def rows(*requests: tuple[float, float, float, Status]) -> Rows:
    """intended, sent and done in seconds from the start, and how it ended."""
    table = np.zeros(len(requests), dtype=ROW_DTYPE).view(Rows)
    for row, (intended_s, sent_s, done_s, status) in zip(table, requests, strict=True):
        row["intended_ns"], row["sent_ns"], row["done_ns"] = (
            START_NS + round(s * 1e9) for s in (intended_s, sent_s, done_s)
        )
        row["items"], row["status"] = 1, status
    return table


def seen(table: Rows, offsets_s: list[float], errors: dict[str, int] | None = None) -> Sent:
    offsets_ns = np.round(np.array(offsets_s) * 1e9).astype(np.int64)
    load = Observed(rows=table, offsets_ns=offsets_ns, start_ns=START_NS, end_ns=START_NS, load=3)
    return Sent(seen=load, errors=errors or {})


def judged(load: Sent, *, from_s: float, until_s: float) -> OverloadPoint:
    return goodput(load.seen, load.errors, SLO, policy="b8", from_s=from_s, until_s=until_s)


def recovered(load: Sent, burst: Burst) -> float | None:
    return recovery(load.seen, SLO, burst, policy="b1", offered=200).seconds


# ---------------------------------------------------------------------------- goodput


def test_every_way_in_which_a_request_can_end_is_counted_apart_and_together_they_are_what_was_offered() -> None:
    table = rows(
        (1.0, 1.0, 1.1, Status.OK),  # 100 ms, the SLO itself
        (1.1, 1.15, 1.201, Status.OK),  # in time by when it was sent, not by when it was due
        (1.2, 1.2, 1.201, Status.REJECTED),
        (1.3, 1.3, 1.4, Status.REJECTED),
        (1.4, 1.4, 31.4, Status.TIMED_OUT),
        (1.5, 1.5, 1.6, Status.FAILED),
        (2.5, 2.5, 2.6, Status.OK),  # due behind the judged stretch
    )
    said = {f"HTTP 503: {QUEUE_FULL}": 1, f"HTTP 503: {QUEUE_TIMEOUT}": 1, "HTTP 500: broken": 1}
    load = seen(table, [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 2.5], said)

    point = judged(load, from_s=1.0, until_s=2.0)

    assert (point.policy, point.load, point.offered) == ("b8", 3, 7.0)  # in a second
    assert (point.good, point.late, point.rejected, point.expired) == (1.0, 1.0, 1.0, 1.0)
    assert point.failed == 3.0  # our deadline, an error, and the one due at 1.6 s that was never sent


def test_refusals_in_other_words_than_the_queues_are_failures() -> None:
    table = rows(*((t, t, t + 0.001, Status.REJECTED) for t in (0.1, 0.2, 0.3, 0.4)))
    offsets = [0.1, 0.2, 0.3, 0.4]

    unknown = judged(seen(table, offsets, {"HTTP 503: unloading": 4}), from_s=0, until_s=1)
    mixed = {f"HTTP 503: {QUEUE_FULL}": 3, "HTTP 503: unloading": 1}
    partly = judged(seen(table, offsets, mixed), from_s=0, until_s=1)

    assert (unknown.rejected, unknown.expired, unknown.failed) == (0, 0, 4)
    assert (partly.rejected, partly.expired, partly.failed) == (3, 0, 1)


@pytest.mark.parametrize("beyond", [1.25, 2.0])
def test_beyond_its_capacity_a_server_without_limits_soon_answers_nothing_in_time(beyond: float) -> None:
    """A request due at t finds (lambda - C) t waiting, which takes (lambda / C - 1) t; L - tau is all that it has."""
    load = answered(constant(beyond * CAPACITY, 8.0), SLEEP, SERVICE_S)
    collapse_s = (0.1 - SERVICE_S) / (beyond - 1)
    batch_s = SERVICE_S / (beyond - 1)  # either way, as the batch that is running may have begun at any time

    before = judged(load, from_s=0, until_s=collapse_s - 2 * batch_s)
    after = judged(load, from_s=collapse_s + 2 * batch_s, until_s=8)

    assert before.good == before.offered
    assert after.good == 0
    assert after.late == after.offered == pytest.approx(beyond * CAPACITY, rel=0.01)


@pytest.mark.parametrize(
    "limited", [replace(SLEEP, max_queue=24), replace(SLEEP, timeout_s=0.075)], ids=["queue size", "timeout"]
)
@pytest.mark.parametrize("beyond", [1.25, 2.0])
def test_limits_keep_the_goodput_at_the_capacity_and_turn_the_rest_away(beyond: float, limited: Batcher) -> None:
    load = answered(constant(beyond * CAPACITY, 8.0), limited, SERVICE_S)

    point = judged(load, from_s=4, until_s=8)

    assert point.good == pytest.approx(CAPACITY, rel=0.01)
    turned_away = (beyond - 1) * CAPACITY
    by_size, by_time = (turned_away, 0) if limited.max_queue else (0, turned_away)
    assert point.rejected == pytest.approx(by_size, rel=0.03)
    assert point.expired == pytest.approx(by_time, rel=0.03)
    assert (point.late, point.failed) == (0, 0)


def test_what_a_client_sends_late_counts_against_it_only_while_it_had_places_free() -> None:
    late = rows(*((t / 10, t / 10 + 0.02, t / 10 + 0.03, Status.OK) for t in range(10)))
    waiting = rows(*((t / 1000, t / 1000 + 0.02, 1 + t / 1000, Status.OK) for t in range(10)))  # all in flight at once

    def share(table: Rows, offsets_s: list[float], outstanding: int | None) -> float:
        return sent_late(replace(seen(table, offsets_s).seen, outstanding=outstanding), 10.0)

    assert share(late, [], 10) == share(late, [], None) == 1.0
    assert share(waiting, [], 1) == 0.0
    assert share(rows(), [], 1) == 0.0


def test_what_is_never_sent_is_the_servers_doing_if_all_places_were_taken_and_the_clients_if_not() -> None:
    slow = rows(*((t / 10, t / 10, 60.0, Status.OK) for t in range(8)))  # none is answered for a minute
    quick = rows(*((t / 10, t / 10, t / 10 + 0.01, Status.OK) for t in range(8)))
    due = [t / 10 for t in range(10)]

    def share(table: Rows, outstanding: int | None) -> float:
        return sent_late(replace(seen(table, due).seen, outstanding=outstanding), 10.0)

    assert share(slow, 8) == 0.0  # all eight places are taken
    assert share(slow, 64) == share(slow, None) == 0.2  # two of ten, with 56 places free
    assert share(quick, 8) == 0.2
    assert share(rows(), 8) == 1.0


# ---------------------------------------------------------------------------- recovery


def with_burst(after_s: float) -> tuple[Offsets, Burst]:
    """Half of what SINGLE can serve, twice of it for two seconds from the first on, and half again."""
    pieces = [constant(50, 1.0), constant(200, 2.0) + 10**9, constant(50, after_s) + 3 * 10**9]
    return np.concatenate(pieces), Burst(from_s=1.0, until_s=3.0)


def test_a_backlog_is_gone_after_its_size_over_what_the_usual_load_leaves_free() -> None:
    offsets, burst = with_burst(10.0)
    load = answered(offsets, SINGLE, SINGLE_S)

    found = recovery(load.seen, SLO, burst, policy="b1", offered=200)

    # 200 requests, 2 s of work, wait at its end; a request due t later waits 2 - t / 2 and may wait 90 ms.
    assert found.seconds == pytest.approx((2 - 0.09) / 0.5, abs=1 / 50 + 0.02)
    assert (found.policy, found.burst_s, found.offered) == ("b1", 2.0, 200)


def test_behind_a_bounded_queue_a_burst_is_forgotten_at_once() -> None:
    offsets, burst = with_burst(10.0)

    seconds = recovered(answered(offsets, replace(SINGLE, max_queue=5), SINGLE_S), burst)

    assert seconds is not None
    assert seconds < 0.1


def test_a_burst_that_nobody_felt_is_recovered_from_in_no_time() -> None:
    offsets, burst = with_burst(10.0)
    assert recovered(answered(offsets, SINGLE, 0.001), burst) == 0.0


@pytest.mark.parametrize("after_s", [3.0, 4.5], ids=["still late", "not for long enough"])
def test_a_load_that_ends_too_soon_shows_no_recovery(after_s: float) -> None:
    offsets, burst = with_burst(after_s)
    assert recovered(answered(offsets, SINGLE, SINGLE_S), burst) is None


def test_what_was_never_sent_after_a_burst_is_not_in_time() -> None:
    offsets, burst = with_burst(10.0)
    after = int(np.searchsorted(offsets, 3 * 10**9))
    unsent = range(after + 20, after + 70)  # for a second, 0.4 s after the burst

    assert recovered(answered(offsets, SINGLE, 0.001, unsent=unsent), burst) == pytest.approx(1.4)


def test_a_recovery_allows_as_many_misses_as_the_slo_does_and_no_more() -> None:
    offsets = np.concatenate([constant(100, 1.0), constant(100, 6.0) + 10**9])
    burst = Burst(from_s=0.0, until_s=1.0)

    def after_misses_at(*numbers: int) -> float | None:
        load = answered(offsets, SINGLE, 0.001)
        for number in numbers:
            load.seen.rows["done_ns"][100 + number] += 10**9
        return recovered(load, burst)

    assert after_misses_at(50) == 0.0  # one of the hundred of a second
    assert after_misses_at(50, 60) == pytest.approx(0.51)  # two: from the request behind the first on


# ---------------------------------------------------------------------------- limits


def model(batcher: Batcher = SLEEP, service_s: float = SERVICE_S) -> Model:
    return Model(batcher=batcher, service=Service.of(batcher, lambda _: service_s), overheads=NONE, noise=STEADY)


def test_the_queue_that_fits_is_full_batches_for_the_time_left_before_the_own_one() -> None:
    two = replace(SLEEP, instances=2)
    slow = Overheads(occupancy_ms=1.0, occupancy_per_item_ms=0.125, additive_ms=6.0)  # 22 ms a batch, 6 for the answer

    assert fitting_queue(model(), 100) == 8 * 4  # four batches of 20 ms before the own one
    assert fitting_queue(model(two), 100) == 8 * 8  # one begins every 10 ms
    assert fitting_queue(model(), 39) == 0  # even the batch that is running is too much
    assert fitting_queue(replace(model(), overheads=slow), 100) == 8 * 3


@pytest.mark.parametrize("instances", [1, 2])
def test_the_queue_that_fits_keeps_every_answer_in_time_and_one_more_batch_does_not(instances: int) -> None:
    batcher = replace(SLEEP, instances=instances)
    # Without the last round: with equal service times the rule's own boundary is met to the nanosecond.
    fits = fitting_queue(model(batcher), 99.9)
    offsets = poisson(3 * instances * CAPACITY, 8.0, seed=5)

    def late(max_queue: int) -> float:
        load = answered(offsets, replace(batcher, max_queue=max_queue), SERVICE_S)
        return judged(load, from_s=2, until_s=8).late

    assert late(fits) == 0
    assert late(fits + 16) > 0.5 * CAPACITY


@pytest.mark.parametrize(("instances", "rate_per_s"), [(1, 360.0), (2, 740.0)])
def test_proposed_limits_keep_the_capacity_beyond_the_rate_and_cost_nothing_at_it(
    instances: int, rate_per_s: float
) -> None:
    batcher = replace(SLEEP, instances=instances)
    proposal = propose(model(batcher), SLO, rate_per_s, seed=1)
    limits = proposal.limited.limits
    assert proposal.timed is not None
    timed = replace(batcher, timeout_s=proposal.timed.limits.queue_timeout_us / 1e6)
    limited = replace(batcher, max_queue=limits.max_queue_size, timeout_s=limits.queue_timeout_us / 1e6)

    def good_share(of: Batcher, ratio: float) -> float:
        load = answered(poisson(ratio * rate_per_s, 60.0, seed=9), of, SERVICE_S)
        point = judged(load, from_s=10, until_s=60)
        return point.good / point.offered

    assert good_share(batcher, 2.0) == 0
    for policy in (limited, timed):
        assert good_share(policy, 2.0) * 2 * rate_per_s == pytest.approx(instances * CAPACITY, rel=0.02)
        assert good_share(policy, 1.0) >= 0.99 * good_share(batcher, 1.0)
    assert 0 < limits.max_queue_size <= fitting_queue(model(batcher), SLO.limit_ms)
    assert limits.queue_timeout_us == proposal.timed.limits.queue_timeout_us == 70_000  # 90% of 100 ms less a batch
    assert f"simulated at 2 x {rate_per_s:.4g} items/s" in proposal.why


def test_a_timeout_that_the_queue_delay_outlasts_is_no_candidate() -> None:
    delayed = replace(SLEEP, delay_s=0.075)
    assert {limits.queue_timeout_us for limits in candidates(model(delayed), SLO)} == {0}
    assert propose(model(delayed), SLO, 360, seed=1).timed is None
    assert {limits.queue_timeout_us for limits in candidates(model(), SLO)} == {0, 70_000}


def test_an_slo_that_leaves_no_room_for_a_second_batch_is_told_so() -> None:
    proposal = propose(model(), Slo(limit_ms=42), 200, seed=1)
    assert "no further batch fits into 90% of 42 ms before one's own" in proposal.why


def test_service_times_are_those_of_busy_instances_and_interpolated_between_profiled_sizes() -> None:
    seen_ms = [(1, 1, 1), (1, 2, 4), (8, 2, 18)]  # items, instances busy
    times = [ServiceTime(items=items, busy=busy, ms=ms, batches=9) for items, busy, ms in seen_ms]

    found = service_of(times, Batcher(max_batch=10, instances=2))

    assert found.seconds * 1e3 == pytest.approx(np.array([[4, 6, 8, 10, 12, 14, 16, 18, 18, 18]] * 2))


def test_a_size_that_one_instance_served_alone_and_under_load_is_the_mean_of_all_its_batches() -> None:
    seen_ms = [(1, 2.0, 30), (1, 4.0, 10), (4, 8.5, 5)]  # items, ms, batches; the first of a request alone
    times = [ServiceTime(items=items, busy=1, ms=ms, batches=n) for items, ms, n in seen_ms]

    for told in (times, times[::-1]):
        found = service_of(told, Batcher(max_batch=4))
        assert found.seconds * 1e3 == pytest.approx(np.array([[2.5, 4.5, 6.5, 8.5]]))


def test_a_rate_without_a_profile_takes_every_batch_for_a_full_one_at_the_capacity() -> None:
    rate = SloRate(slo=SLO, items_per_s=700, ci95=None, given="data", verdict="resolved", capacity_items_per_s=800)
    found = model_of(rate, replace(SLEEP, instances=2))
    assert batch_ms(found) == pytest.approx(20.0)
    assert found.service.seconds == pytest.approx(np.full((2, 8), 0.02))


# ---------------------------------------------------------------------------- the choice

UNLIMITED, LIMITED, TIMED = (
    Limits(),
    Limits(max_queue_size=24, queue_timeout_us=70_000),
    Limits(queue_timeout_us=70_000),
)
PROPOSAL = Proposal(
    unlimited=InTime(limits=UNLIMITED, beyond=0.0, at_rate=1.0),
    limited=InTime(limits=LIMITED, beyond=0.5, at_rate=1.0),
    timed=InTime(limits=TIMED, beyond=0.5, at_rate=1.0),
    why="foreseen",
)
POLICIES = {"b8": UNLIMITED, "b8-limited": LIMITED, "b8-timed": TIMED}


def measured(**good: tuple[float, float, float]) -> list[OverloadPoint]:
    """Goodput at half of, at and at twice a rate of 100."""
    return [
        OverloadPoint(
            policy=name.replace("_", "-"), offered=offered, good=kept, late=offered - kept, rejected=0.0, expired=0.0,
            failed=0.0, load=0,
        )
        for name, row in good.items()
        for offered, kept in zip((50.0, 101.0, 200.0), row, strict=True)
    ]  # fmt: skip


def test_what_was_measured_decides_and_not_what_was_foreseen() -> None:
    points = measured(b8=(50, 100, 0), b8_limited=(50, 100, 9), b8_timed=(50, 100, 98))

    chosen = choose(PROPOSAL, POLICIES, points, 100.0)

    assert chosen.limits == TIMED
    assert chosen.why == (
        "foreseen; measured at 200 items/s, in time are 98 under b8-timed (a timeout of 70 ms), 9 under b8-limited "
        "(max_queue_size 24 and a timeout of 70 ms), 0 under b8 (no limits); b8-timed is recommended; "
        "b8-limited kept less than half of what was simulated: the sign of a batcher that only wakes when a request is "
        "admitted, and a full queue admits none"
    )


def test_limits_that_cost_users_goodput_on_ordinary_days_are_not_recommended() -> None:
    points = measured(b8=(50, 100, 0), b8_limited=(50, 99, 90), b8_timed=(49, 99, 98))

    chosen = choose(PROPOSAL, POLICIES, points, 100.0)

    assert chosen.limits == LIMITED  # 1 of 150 less, where TIMED loses 2
    assert "b8-timed cost more than 1% of the goodput up to the rate" in chosen.why


def test_of_limits_that_gain_the_one_with_the_most_goodput_is_recommended_however_near_the_next() -> None:
    points = measured(b8=(50, 100, 80), b8_limited=(50, 100, 90), b8_timed=(50, 100, 92))
    assert choose(PROPOSAL, POLICIES, points, 100.0).limits == TIMED


def test_limits_that_hardly_gain_leave_the_configuration_as_it_is() -> None:
    points = measured(b8=(50, 100, 96), b8_limited=(50, 100, 98), b8_timed=(50, 100, 98))
    assert choose(PROPOSAL, POLICIES, points, 100.0).limits == UNLIMITED


@pytest.mark.parametrize("policies", [{"as served": UNLIMITED}, POLICIES], ids=["one policy", "ended early"])
def test_where_nothing_can_be_compared_the_simulator_decides_and_says_so(policies: dict[str, Limits]) -> None:
    points = measured(b8=(50, 100, 0))

    chosen = choose(PROPOSAL, policies, points, 100.0)
    untimed = choose(replace(PROPOSAL, timed=None), policies, points, 100.0)

    assert chosen.limits == TIMED
    assert chosen.why == "foreseen; a timeout of 70 ms: simulated, not measured"
    assert untimed.limits == LIMITED


def test_an_unmeasured_timeout_alone_is_recommended_only_if_it_is_foreseen_to_do_as_well() -> None:
    worse = replace(PROPOSAL, timed=InTime(limits=TIMED, beyond=0.5, at_rate=0.9))
    assert choose(worse, {"as served": UNLIMITED}, [], 100.0).limits == LIMITED
