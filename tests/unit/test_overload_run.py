"""Overload of simulated servers: which loads are sent, to whom, and what is kept of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brim.errors import Interrupted, Lost, WorkerLost
from brim.records import Server, ServingConfig, Slo, SloRate, Target, Variant
from experiments.overload.beside import configs_beside, limits_of, why_not
from experiments.overload.plan import RATIOS, USUAL, OverloadPlan, Planned, loads, plan_of
from experiments.overload.run import Policy, Sent, answer, gather, words_of_point, words_of_recovery
from judging.queue_choice import Recommended
from judging.queue_limits import InTime, Limits, Proposal, model_of
from queueing.batcher import Batcher
from serve.known import known_server
from tests.unit.queued import answered

#: 20 ms a batch of 8: 400 a second, of which 350 meet 100 ms.
SLEEP = Batcher(max_batch=8)
SERVICE_S, CAPACITY, RATE = 0.02, 400.0, 350.0
PLAN = OverloadPlan(
    slo=Slo(limit_ms=100), rate_per_s=RATE, capacity_per_s=CAPACITY, batch_s=SERVICE_S, outstanding=10_000,
    seed=3,
)  # fmt: skip
RECOMMENDED = Recommended(limits=Limits(max_queue_size=24, queue_timeout_us=70_000), why="because")
CONFIG = ServingConfig(name="b8", engine="known", backend="python", max_batch=8)


def policy(name: str, batcher: Batcher, sent: list[str], failure: tuple[str, BaseException] | None = None) -> Policy:
    def send(planned: Planned) -> Sent:
        sent.append(f"{name}: {planned.name}")
        if failure is not None and planned.name == failure[0]:
            raise failure[1]
        return answered(planned.offsets_ns, batcher, SERVICE_S, load=len(sent))

    return Policy(name=name, limits=Limits(), send=send)


def both(sent: list[str], failure: tuple[str, BaseException] | None = None) -> list[Policy]:
    limited = replace(SLEEP, max_queue=24, timeout_s=0.07)
    return [policy("b8", SLEEP, sent), policy("b8-limited", limited, sent, failure)]


def quiet(_: str) -> None:
    return


def test_without_limits_goodput_collapses_beyond_capacity_and_with_them_it_stays() -> None:
    sent: list[str] = []
    told: list[str] = []

    found = gather(PLAN, both(sent), told.append)

    assert sent[:4] == [
        "b8: 0.5 x the rate",
        "b8-limited: 0.5 x the rate",
        "b8: 0.8 x the rate",
        "b8-limited: 0.8 x the rate",
    ]
    share = {
        (point.policy, ratio): point.good / point.offered
        for point, ratio in zip(found.points, np.repeat(RATIOS, 2), strict=True)
    }
    for ratio in (0.5, 0.8):
        assert share["b8", ratio] == share["b8-limited", ratio] == 1.0
    assert share["b8", 1.5] == share["b8", 2.0] == 0.0
    last = found.points[-1]
    assert last.policy == "b8-limited"
    assert last.good == pytest.approx(CAPACITY, rel=0.02)
    assert last.rejected > 0
    assert last.failed == 0
    unlimited, limited = found.recoveries
    # 2 s of 300 a second too many, worked off by the 155 that the usual load leaves free.
    assert unlimited.seconds == pytest.approx(2 * (700 - 400) / (400 - 245), rel=0.2)
    assert limited.seconds is not None
    assert limited.seconds < 0.1
    assert len(told) == len(sent) == 14
    assert not found.notes


@pytest.mark.parametrize(
    ("failure", "where"),
    [(Interrupted(2), "b8-limited"), (WorkerLost("a sender died"), "b8-limited"), (Lost("the server is gone"), "b8")],
    ids=["a signal", "a lost sender", "a lost server"],
)
def test_what_was_judged_before_an_early_end_is_kept_and_says_why_it_ended(failure: BaseException, where: str) -> None:
    fails = {where: ("1 x the rate", failure)}
    ways = [policy(name, SLEEP, [], fails.get(name)) for name in ("b8", "b8-limited")]
    found = gather(PLAN, ways, quiet)
    kept = answer(PLAN, found, RECOMMENDED, [""])

    assert found.ended_by is failure
    before = ["b8", "b8-limited", "b8", "b8-limited"]
    assert [point.policy for point in kept.points] == [*before, *(["b8"] if where != "b8" else [])]
    assert kept.why == f"because; ended early at 1 x the rate under {where}: {failure}"
    assert (kept.items_per_s, kept.max_queue_size, kept.queue_timeout_us) == (RATE, 24, 70_000)


def test_a_server_beside_the_measured_one_that_is_lost_costs_its_own_policy_alone() -> None:
    sent: list[str] = []
    found = gather(PLAN, both(sent, ("0.8 x the rate", Lost("the server is gone"))), quiet)
    assert found.ended_by is None
    assert [point.policy for point in found.points] == ["b8", "b8-limited", *["b8"] * (len(RATIOS) - 1)]
    assert [one.policy for one in found.recoveries] == ["b8"]
    assert found.notes == ["left out from 0.8 x the rate on: b8-limited: the server is gone"]


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_a_load_that_the_client_sent_late_is_sent_again_and_decides_nothing_if_that_is_late_too(times: int) -> None:
    sent: list[str] = []

    def send(planned: Planned) -> Sent:
        sent.append(planned.name)
        load = answered(planned.offsets_ns, SLEEP, SERVICE_S, load=len(sent))
        if planned.name == "1 x the rate" and sent.count(planned.name) <= times:
            load.seen.rows["sent_ns"] = np.maximum(load.seen.rows["intended_ns"], load.seen.rows["done_ns"] - 5_000_000)
        return load

    found = gather(PLAN, [Policy(name="b8", limits=Limits(), send=send)], quiet)

    assert sent.count("1 x the rate") == 2
    assert len(sent) == len(loads(PLAN)) + 1
    assert len(found.points) == len(RATIOS)
    assert len(found.comparable) == len(RATIOS) - (times == 2)
    assert ("at 1 x the rate under b8 the client could not keep" in " ".join(found.notes)) == (times == 2)


@pytest.mark.parametrize(("percentile", "kept"), [(99.0, len(RATIOS)), (99.9, 0)])
def test_a_client_may_be_late_with_no_more_than_the_slo_allows_to_be(percentile: float, kept: int) -> None:
    """One request in 200 leaves 20 ms late: below 1%, but five times what a p99.9 allows."""

    def send(planned: Planned) -> Sent:
        load = answered(planned.offsets_ns, SLEEP, SERVICE_S, load=0)
        load.seen.rows["sent_ns"][::200] += 20_000_000
        return load

    plan = replace(PLAN, slo=Slo(limit_ms=100, percentile=percentile))
    assert len(gather(plan, [Policy(name="b8", limits=Limits(), send=send)], quiet).comparable) == kept


def test_a_plan_follows_from_the_rate_and_leaves_room_for_what_queues() -> None:
    slow = SloRate(slo=Slo(limit_ms=1250), items_per_s=12, ci95=None, given="data", verdict="resolved")
    fast = SloRate(
        slo=Slo(limit_ms=100), items_per_s=4000, ci95=None, given="model", verdict="resolved", capacity_items_per_s=4400
    )
    for found, max_batch, stretch_s, outstanding in (
        (slow, 4, 12.0, 288),  # twice the rate for 12 s
        (fast, 8, 3.0, 2048),  # 24,000 connections are not to be had
        (replace(slow, items_per_s=0.5), 64, 12.0, 256),  # hardly anything piles up, but a queue holds full batches
    ):
        plan = plan_of(found, model_of(found, Batcher(max_batch=max_batch)), seed=3, most_per_s=None)
        assert (plan.stretch_s, plan.outstanding) == (stretch_s, outstanding)
        assert plan.rate_per_s == found.items_per_s
        assert plan.capacity_per_s == (found.capacity_items_per_s or found.items_per_s)


def test_every_policy_meets_the_same_arrivals_at_the_planned_rates() -> None:
    planned = loads(PLAN)
    again = loads(PLAN)

    assert [p.rate_per_s / RATE for p in planned[:-1]] == list(RATIOS)
    for one, other in zip(planned, again, strict=True):
        assert (one.offsets_ns == other.offsets_ns).all()
        assert (np.diff(one.offsets_ns) >= 0).all()
        assert one.offsets_ns[-1] < one.seconds * 1e9
        assert len(one.offsets_ns) == pytest.approx(one.rate_per_s * one.seconds, rel=0.15)
    assert sum(p.seconds for p in planned) < 60


def test_a_burst_is_twice_the_rate_between_usual_load_that_lasts_until_its_backlog_is_gone() -> None:
    planned = loads(PLAN)[-1]
    burst = planned.burst
    assert burst is not None

    def rate(from_s: float, until_s: float) -> float:
        inside = (planned.offsets_ns >= from_s * 1e9) & (planned.offsets_ns < until_s * 1e9)
        return float(inside.sum()) / (until_s - from_s)

    assert rate(0, burst.from_s) == pytest.approx(USUAL * RATE, rel=0.15)
    assert rate(burst.from_s, burst.until_s) == pytest.approx(2 * RATE, rel=0.15)
    assert rate(burst.until_s, planned.seconds) == pytest.approx(USUAL * RATE, rel=0.15)
    backlog_gone_s = burst.until_s + burst.seconds * (2 * RATE - CAPACITY) / (CAPACITY - USUAL * RATE)
    assert planned.seconds > backlog_gone_s + 2


def test_no_more_is_sent_than_a_host_allows() -> None:
    """Of 508/s 1.25 times 350 leaves room for the seconds that random arrivals fill beyond their mean; of 455/s not."""
    for most, ratios in ((1.45 * RATE, [0.5, 0.8, 1.0, 1.25]), (1.3 * RATE, [0.5, 0.8, 1.0])):
        allowed = loads(replace(PLAN, most_per_s=most))
        assert [p.rate_per_s / RATE for p in allowed] == ratios  # and no burst


LIMITED, TIMED = Limits(max_queue_size=24, queue_timeout_us=7), Limits(queue_timeout_us=7)


@pytest.mark.parametrize(
    ("own", "limited", "timed", "beside"),
    [
        (Limits(), LIMITED, TIMED, {"b8-limited": LIMITED, "b8-timed": TIMED}),
        (Limits(), LIMITED, None, {"b8-limited": LIMITED}),
        (TIMED, LIMITED, TIMED, {"b8-unlimited": Limits(), "b8-limited": LIMITED}),
        (
            Limits(max_queue_size=9),
            LIMITED,
            TIMED,
            {"b8-unlimited": Limits(), "b8-limited": LIMITED, "b8-timed": TIMED},
        ),
    ],
    ids=["unlimited", "no timeout fits", "timed so", "limited otherwise"],
)
def test_beside_the_policy_as_served_stand_those_that_it_is_not(
    own: Limits, limited: Limits, timed: Limits | None, beside: dict[str, Limits]
) -> None:
    config = replace(CONFIG, max_queue_size=own.max_queue_size, queue_timeout_us=own.queue_timeout_us)
    found = configs_beside(config, proposal(limited, timed))

    assert {c.name: limits_of(c) for c in found} == beside
    assert {(c.max_batch, c.engine, c.instances) for c in found} == {(8, "known", 1)}


def proposal(limited: Limits, timed: Limits | None) -> Proposal:
    def foreseen(limits: Limits) -> InTime:
        return InTime(limits=limits, beyond=0.5, at_rate=1.0)

    return Proposal(
        unlimited=foreseen(Limits()), limited=foreseen(limited), timed=foreseen(timed) if timed else None, why=""
    )


def test_other_limits_are_served_only_where_the_model_is_ours_and_embedded() -> None:
    server = Server(
        id="s", mode="embedded", http="http://127.0.0.1:1", grpc=None, metrics=None, pid=1, process_started_s=1.0,
        version="", variants=("sleep__b8",), repository="r", log=None,
    )  # fmt: skip
    known = known_server("sleep", {})
    ours = Target(
        url="http://127.0.0.1:1", model="sleep__b8", version="", inputs=known.inputs, outputs=known.outputs,
        max_batch=8, instances=1, server_name="s", server_version="", variant=Variant(model=known, config=CONFIG),
        server=server,
    )  # fmt: skip

    assert why_not(ours) is None
    assert "Brim does not serve" in (why_not(replace(ours, variant=None)) or "")
    assert "Brim does not serve" in (why_not(replace(ours, server=replace(server, mode="remote"))) or "")
    assert "only the embedded" in (why_not(replace(ours, server=replace(server, mode="docker"))) or "")


def test_points_and_recoveries_are_told_in_one_line() -> None:
    found = gather(PLAN, both([]), quiet)
    point = replace(found.points[-1], offered=700.0, good=400.0, rejected=290.5, expired=9.5, late=0.0, failed=0.0)
    never = replace(found.recoveries[0], seconds=None, offered=700.0, burst_s=2.0)

    assert words_of_point(point) == "b8-limited at 700/s: 400/s in time, 290.5 rejected, 9.5 expired"
    assert words_of_recovery(never) == "b8 after 2 s at 700/s: not in time again within the load"
