"""Which load comes next, against simulated servers: capacity, noise, drift, slow clients, stalls, retrograde rates."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from experiments.measure.experiment import Done, Plan, Step
from experiments.measure.ladder import At, Found, findings, point_gain
from experiments.measure.steps import foreseen, most_loads, next_step, serving_efficiency

Rate = Callable[[Step], float | None]


def plan(**changes: object) -> Plan:
    values: dict[str, object] = {
        "full": 8, "concurrency": None, "senders": 1, "max_senders": 3, "rounds": 3, "cross_check": True,
        "engine": False, "agree": 0.05,
    }  # fmt: skip
    return Plan(**{**values, **changes})  # type: ignore[arg-type]  # a test builder


def play(asked: Plan, rate: Rate, **known: float) -> tuple[list[Done], Found]:
    done: list[Done] = []
    while (step := next_step(asked, done)) is not None:
        found = rate(step)
        done.append(Done(step=step, rates=() if found is None else (found,), **known))
        assert len(done) < 200, "the experiment does not end"
    return done, findings(asked, done)


def short(done: list[Done]) -> list[tuple[str, int, int]]:
    return [(d.step.purpose, d.step.concurrency, d.step.senders) for d in done]


def batch_server(step: Step, *, service_s: float = 0.02, max_batch: int = 4, instances: int = 1) -> float:
    """A batch server at queue delay 0: alone 1/s, then two half-filled batches alternate, then full ones (k = 1)."""
    n, s = step.concurrency, service_s
    if n == 1:
        return 1 / s
    return min(n / (2 * s), instances * max_batch / s)


LOW = [("search", 1, 1), ("search", 2, 1), ("search", 4, 1)]


def test_the_ladder_climbs_to_full_batches_and_one_doubling_on_and_asks_one_more_sender() -> None:
    done, found = play(plan(), batch_server)
    assert short(done) == [
        *LOW,
        ("search", 8, 1),
        ("search", 16, 1),
        ("one_more_sender", 16, 2),
        ("figure", 8, 1),
        ("cross_check", 8, 1),
        ("figure", 8, 1),
        ("cross_check", 8, 1),
    ]
    assert found == Found(doubling_gain=0.0, sender_gain=0.0, concurrency=8, senders=1, lower=8, top=16)


def test_flat_early_points_end_nothing() -> None:
    """1 and 2 in flight give the same rate on a batch server: a search that stops there is wrong."""
    done, found = play(plan(full=64), lambda step: batch_server(step, max_batch=32))
    assert [d.step.concurrency for d in done if d.step.purpose == "search"] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert found.concurrency == 64


@pytest.mark.parametrize("full", [1, 2, 3, 6, 12, 100])
def test_the_ladder_always_reaches_full_batches_whatever_their_size(full: int) -> None:
    done, found = play(plan(full=full, max_senders=2), lambda step: 100.0)
    climbed = [d.step.concurrency for d in done if d.step.purpose == "search"]
    assert climbed == [*(2**i for i in range(20) if 2**i < full), full, 2 * full]
    assert found.concurrency == full


def test_throughput_that_grows_with_the_load_is_followed_to_the_bound_and_then_called_rising() -> None:
    done, found = play(plan(most=64), lambda step: float(step.concurrency))
    assert max(d.step.concurrency for d in done) == 64
    assert found.doubling_gain == pytest.approx(1.0)
    assert found.concurrency == 64, "the figure is of the best point there is"


def test_a_plateau_behind_the_first_doubling_is_found() -> None:
    """A server whose transport hides its capacity until 64 are in flight."""
    _, found = play(plan(), lambda step: 1000.0 * (1 - math.exp(-step.concurrency / 16)))
    assert found.doubling_gain is not None and found.doubling_gain <= 0.03
    assert (found.concurrency, found.lower, found.top) == (64, 64, 128)


def test_of_a_server_that_gets_slower_under_more_load_the_best_point_is_taken() -> None:
    done, found = play(plan(), lambda step: 100.0 if step.concurrency == 8 else 90.0)
    assert found.concurrency == 8
    assert found.doubling_gain == pytest.approx(-0.1)
    assert max(d.step.concurrency for d in done) == 16


def test_bounds_of_the_users_own_are_kept() -> None:
    done, _ = play(plan(least=4, most=16), batch_server)
    assert sorted({d.step.concurrency for d in done}) == [4, 8, 16]
    done, found = play(plan(most=6), batch_server)
    assert [d.step.concurrency for d in done if d.step.purpose == "search"] == [1, 2, 4, 6]
    assert (found.concurrency, found.doubling_gain, found.sender_gain) == (6, None, None), "no plateau is known"
    done, found = play(plan(least=32, most=64), batch_server)
    assert [d.step.concurrency for d in done if d.step.purpose == "search"] == [32, 64]
    assert found.concurrency == 32


def test_a_slow_client_gets_senders_until_one_more_gains_nothing() -> None:
    done, found = play(plan(max_senders=4), lambda step: min(100.0, 40.0 * step.senders))
    assert found.senders == 3
    assert found.sender_gain == pytest.approx(0.0)
    assert ("figure", 8, 3) in short(done)
    assert ("one_more_sender", 16, 4) in short(done)


def test_a_client_that_still_gains_at_the_bound_stays_convicted_without_another_climb() -> None:
    done, found = play(plan(max_senders=2), lambda step: 40.0 * step.senders)
    assert found.sender_gain == pytest.approx(1.0)
    assert {d.step.concurrency for d in done if d.step.senders == 2} == {16}


@pytest.mark.parametrize("senders", [2, 3, 8])
def test_however_many_senders_there_are_one_more_is_tried(senders: int) -> None:
    """A model that does not batch is full with two in flight; more senders than that climb where they can share."""
    asked = plan(full=2, senders=senders, max_senders=senders + 1)
    done, found = play(asked, lambda step: 100.0)
    assert "one_more_sender" in {d.step.purpose for d in done}
    assert found.sender_gain == pytest.approx(0.0)
    assert all(d.step.senders <= d.step.concurrency for d in done)


def test_workers_of_a_cluster_are_one_fewer_at_first_so_that_the_last_is_the_experiment() -> None:
    done, found = play(plan(senders=2, max_senders=3), lambda step: 100.0)
    assert ("one_more_sender", 16, 3) in short(done)
    assert found.sender_gain == pytest.approx(0.0)


def test_one_unlucky_load_does_not_make_a_plateau_rise() -> None:
    rates = iter([5.0, 5.0, 9.0, 17.0, 18.0, 18.1])  # the first load at 8 in flight met a busy moment
    done, found = play(plan(), lambda step: next(rates, 18.0))
    assert short(done)[:6] == [*LOW, ("search", 8, 1), ("search", 16, 1), ("search", 8, 1)]
    assert found.concurrency == 8
    assert found.doubling_gain is not None and found.doubling_gain <= 0.03


def test_with_noise_of_one_percent_a_flat_server_is_nearly_always_called_flat_and_a_rise_of_a_tenth_never() -> None:
    """200 seeded searches of each kind, up to 16 in flight; one load's median has 1% noise."""
    flat = rising = 0
    for seed in range(200):
        noise = random.Random(seed)
        _, found = play(plan(most=16), lambda step, noise=noise: 18.0 * noise.gauss(1, 0.01))  # type: ignore[misc]
        flat += (found.doubling_gain or 0) <= 0.03
        _, found = play(
            plan(most=16),
            lambda step, noise=noise: (18.0 if step.concurrency <= 8 else 19.8) * noise.gauss(1, 0.01),  # type: ignore[misc]
        )
        rising += (found.doubling_gain or 0) <= 0.03
    assert flat >= 195
    assert rising == 0


def test_a_single_point_is_measured_without_a_search() -> None:
    done, found = play(plan(concurrency=5), lambda step: 18.0)
    assert short(done) == [("figure", 5, 1), ("cross_check", 5, 1)] * 2
    assert found == Found(doubling_gain=None, sender_gain=None, concurrency=5, senders=1)


def test_each_start_of_the_server_gets_a_round_of_its_own() -> None:
    done, _ = play(plan(starts=3, engine=True), batch_server)
    rounds = [(d.step.purpose, d.step.start) for d in done if d.step.purpose in ("figure", "alone", "cross_check")]
    assert rounds == [(purpose, start) for start in range(3) for purpose in ("figure", "alone", "cross_check")]
    assert {d.step.start for d in done if d.step.purpose not in ("figure", "alone", "cross_check")} == {0}


def test_rounds_beyond_the_starts_stay_in_the_last_one() -> None:
    done, _ = play(plan(concurrency=8, starts=3), lambda step: 18.0 if step.purpose == "figure" else 16.0)
    assert [d.step.start for d in done if d.step.purpose == "figure"] == [0, 1, 2, 2]


# ---------------------------------------------------------------------------- fewer bytes


def test_where_the_engine_has_time_left_the_same_items_are_sent_with_fewer_bytes() -> None:
    done, found = play(
        plan(transfer=True, cross_check=False),
        lambda step: 150.0 if step.purpose == "transfer" else 100.0,
        busy_share=0.6,
    )
    assert ("transfer", 8, 1) in short(done)
    assert found.transfer_gain == pytest.approx(0.5)
    assert len([d for d in done if d.step.purpose == "transfer"]) == 3, "a gain is measured three times"


def test_a_busy_engine_needs_no_such_experiment() -> None:
    done, found = play(plan(transfer=True), lambda step: 100.0, busy_share=0.99)
    assert "transfer" not in {d.step.purpose for d in done}
    assert found.transfer_gain is None


def test_fewer_bytes_that_cannot_be_sent_do_not_end_the_measurement() -> None:
    done, found = play(plan(transfer=True), lambda step: None if step.purpose == "transfer" else 100.0, busy_share=0.5)
    assert [d.step.purpose for d in done].count("transfer") == 1
    assert [d.step.purpose for d in done].count("figure") == 2
    assert found.transfer_gain is None


# ---------------------------------------------------------------------------- rounds


def test_a_cross_check_that_failed_twice_is_given_up_and_the_figure_is_finished() -> None:
    done, _ = play(plan(concurrency=8), lambda step: None if step.purpose == "cross_check" else 18.0)
    assert short(done) == [("figure", 8, 1), ("cross_check", 8, 1), ("cross_check", 8, 1), ("figure", 8, 1)]


def test_without_a_cross_check_only_the_figure_is_measured() -> None:
    done, _ = play(plan(cross_check=False), lambda step: 18.0)
    assert {d.step.purpose for d in done} == {"search", "one_more_sender", "figure"}


@pytest.mark.parametrize("at", range(7))
def test_a_load_that_gave_no_window_ends_the_experiment(at: int) -> None:
    """A server that stalls for good in the middle of any load of the search or of the figure."""
    rates = iter([18.0] * at)
    done, _ = play(plan(), lambda step: next(rates, None))
    assert len(done) == at + 1


def load(concurrency: int, rate: float, busy_ms: float, batch: float = 4.0, senders: int = 1) -> Done:
    """With one instance, busy share = rate x engine time per item."""
    step = Step(purpose="search", concurrency=concurrency, senders=senders)
    busy_s = busy_ms / 1e3
    return Done(step=step, rates=(rate,), busy_s_per_item=busy_s, effective_batch=batch, busy_share=rate * busy_s)


def test_a_machine_that_got_faster_between_two_loads_is_no_gain() -> None:
    """Measured on shared cores: 15.0 and 17.9 images/s, 66.5 and 55.6 ms of engine time each, busy 99.8% both times."""
    done = [load(8, 15.00, 66.50), load(16, 17.93, 55.58)]
    assert point_gain(done, At(8, 1), At(16, 1)) == pytest.approx(-0.001, abs=0.001)


def test_a_machine_that_drifts_by_a_fifth_over_the_search_still_shows_its_plateau() -> None:
    """Every load is faster than the one before; the engine's own time per item tells why."""
    speed = iter(1 + 0.03 * i for i in range(100))
    asked, done = plan(cross_check=False), list[Done]()
    while (step := next_step(asked, done)) is not None:
        now = next(speed)
        rate = batch_server(step) * now
        done.append(
            Done(
                step=step,
                rates=(rate,),
                busy_s_per_item=0.99 / rate,
                busy_share=0.99,
                effective_batch=min(4.0, step.concurrency / 2),
            )  # fmt: skip
        )
    found = findings(asked, done)
    assert (found.concurrency, found.top) == (8, 16)
    assert found.sender_gain == pytest.approx(0.0, abs=1e-9)


def test_an_engine_that_waited_less_is_a_gain_even_if_the_machine_got_slower() -> None:
    """Kept busy 90% of the time, then 99%: 1.1 times, though each item took a tenth longer and the rate stayed."""
    done = [load(8, 90.0, 10.0), load(16, 90.0, 11.0)]
    assert point_gain(done, At(8, 1), At(16, 1)) == pytest.approx(0.1)


def test_an_idle_engine_that_is_only_disturbed_by_a_second_sender_is_no_gain() -> None:
    """Its time per item is wall time: preempted, it takes 15% longer while the rate falls by 5%. Rates are compared."""
    done = [load(8, 10_000, 0.050, batch=1.0), load(8, 9_500, 0.0575, batch=1.0, senders=2)]
    assert point_gain(done, At(8, 1), At(8, 2)) == pytest.approx(-0.05)


def test_larger_batches_are_a_gain_that_the_engine_time_must_not_hide() -> None:
    """Batches of 4 need less engine time an item than batches of 2: rates are compared as they are."""
    done = [load(8, 60.0, 16.0, batch=2.0), load(16, 80.0, 12.0, batch=4.0)]
    assert point_gain(done, At(8, 1), At(16, 1)) == pytest.approx(1 / 3)


def test_generators_that_do_not_agree_are_measured_again_in_turn_up_to_four_rounds() -> None:
    done, _ = play(plan(concurrency=8), lambda step: 18.0 if step.purpose == "figure" else 16.0)
    assert short(done) == [("figure", 8, 1), ("cross_check", 8, 1)] * 4
    rates = iter([18.0, 16.0, 18.0, 17.5, 16.8, 17.5])  # a slow minute: the medians meet in the third round
    done, _ = play(plan(concurrency=8), lambda step: next(rates, 17.0))
    assert short(done) == [("figure", 8, 1), ("cross_check", 8, 1)] * 3


def test_the_engine_alone_runs_in_every_round_and_its_efficiency_is_the_median_of_the_rounds() -> None:
    rates = iter([19.0, 20.0, 19.0, 15.2, 16.0, 15.2])
    done, _ = play(plan(concurrency=8, engine=True), lambda step: next(rates))
    assert [d.step.purpose for d in done] == ["figure", "alone", "cross_check"] * 2
    assert serving_efficiency(done) == pytest.approx(0.95)


def test_a_server_that_seems_to_beat_its_own_engine_is_measured_again() -> None:
    rates = iter([20.0, 18.0, 20.0, 20.0, 18.0, 20.0, 20.0, 21.0, 20.0, 20.0, 21.0, 20.0])
    done, _ = play(plan(concurrency=8, engine=True), lambda step: next(rates))
    assert len(done) == 12
    assert serving_efficiency(done) == pytest.approx((20 / 18 + 20 / 21) / 2)


def test_the_engine_is_not_tried_again_after_it_failed() -> None:
    done, _ = play(plan(concurrency=8, engine=True), lambda step: None if step.purpose == "alone" else 18.0)
    assert [d.step.purpose for d in done] == ["figure", "alone", "cross_check", "figure", "cross_check"]


def test_never_more_senders_than_requests() -> None:
    done, _ = play(plan(full=2, max_senders=4), lambda step: 40.0 * step.senders)
    assert all(d.step.senders <= d.step.concurrency for d in done)


# ---------------------------------------------------------------------------- how many there will be


@pytest.mark.parametrize(
    "asked",
    [
        plan(concurrency=8, max_senders=4),
        plan(max_senders=4, most=64),
        plan(senders=2, max_senders=4, most=64, transfer=True),
        plan(starts=5, most=16),
        plan(full=1, most=16),
    ],
    ids=["point", "search", "transfer", "starts", "no batches"],
)
def test_no_experiment_takes_more_loads_than_was_announced(asked: Plan) -> None:
    for seed in range(50):
        noise = random.Random(seed)
        done, _ = play(asked, lambda step, noise=noise: noise.uniform(10, 20), busy_share=0.5)  # type: ignore[misc]
        assert len(done) <= most_loads(asked)
        growing, _ = play(asked, lambda step, noise=noise: step.senders * step.concurrency * noise.gauss(1, 0.2))  # type: ignore[misc]
        assert len(growing) <= most_loads(asked)


def test_what_is_foreseen_is_what_comes_when_nothing_gains() -> None:
    asked = plan(engine=True)
    done, _ = play(asked, batch_server, busy_share=1.0)
    for made in range(4, len(done)):
        assert [s.purpose for s in foreseen(asked, done[:made])] == [d.step.purpose for d in done[made:]]
    assert foreseen(asked, done) == []


def test_gain_is_a_fraction_of_the_first() -> None:
    done = [
        Done(step=Step(purpose="search", concurrency=8, senders=1), rates=(20.0,)),
        Done(step=Step(purpose="search", concurrency=16, senders=1), rates=(21.0,)),
    ]
    assert point_gain(done, At(8, 1), At(16, 1)) == pytest.approx(0.05)
    assert point_gain(done, At(8, 1), At(32, 1)) is None
