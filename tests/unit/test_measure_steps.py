"""Which load comes next, against a simulated server whose capacity, noise and slow client are known."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from experiments.measure.steps import (
    Done,
    Found,
    Plan,
    Step,
    findings,
    most_loads,
    next_step,
    point_gain,
    serving_efficiency,
)

Rate = Callable[[Step], float | None]


def plan(**changes: object) -> Plan:
    values: dict[str, object] = {
        "full": 8, "concurrency": None, "senders": 1, "max_senders": 3, "rounds": 3, "cross_check": True,
        "engine": False, "agree": 0.05,
    }  # fmt: skip
    return Plan(**{**values, **changes})  # type: ignore[arg-type]  # a test builder


def play(asked: Plan, rate: Rate) -> tuple[list[Done], Found]:
    done: list[Done] = []
    while (step := next_step(asked, done)) is not None:
        found = rate(step)
        done.append(Done(step=step, rates=() if found is None else (found,)))
        assert len(done) < 50, "the experiment does not end"
    return done, findings(asked, done)


def short(done: list[Done]) -> list[tuple[str, int, int]]:
    return [(d.step.purpose, d.step.concurrency, d.step.senders) for d in done]


def test_a_saturated_server_takes_three_loads_to_search_and_four_for_the_figure() -> None:
    done, found = play(plan(), lambda step: 18.0)
    assert short(done) == [
        ("search", 8, 1),
        ("search", 16, 1),
        ("one_more_sender", 16, 2),
        ("figure", 8, 1),
        ("cross_check", 8, 1),
        ("figure", 8, 1),
        ("cross_check", 8, 1),
    ]
    assert found == Found(doubling_gain=0.0, sender_gain=0.0, concurrency=8, senders=1)


def test_throughput_that_doubles_with_the_load_is_measured_three_times_before_it_is_called_rising() -> None:
    done, found = play(plan(), lambda step: float(step.concurrency))
    assert short(done)[:6] == [("search", 8, 1), ("search", 16, 1)] * 3
    assert found.doubling_gain == pytest.approx(1.0)
    assert found.concurrency == 16, "the figure is of the best point there is"


def test_a_slow_client_gets_senders_until_one_more_gains_nothing() -> None:
    done, found = play(plan(max_senders=4), lambda step: min(100.0, 40.0 * step.senders))
    assert found.senders == 3
    assert found.sender_gain == pytest.approx(0.0)
    assert ("figure", 8, 3) in short(done)
    assert ("one_more_sender", 16, 4) in short(done)


def test_a_client_that_still_gains_at_the_bound_stays_convicted() -> None:
    _, found = play(plan(max_senders=2), lambda step: 40.0 * step.senders)
    assert found.sender_gain == pytest.approx(1.0)


def test_one_unlucky_load_does_not_make_a_plateau_rise() -> None:
    rates = iter([17.0, 18.0, 18.1])  # the first load at 8 in flight met a busy moment

    def rate(step: Step) -> float:
        return next(rates, 18.0)

    done, found = play(plan(), rate)
    assert short(done)[:3] == [("search", 8, 1), ("search", 16, 1), ("search", 8, 1)]
    assert found.concurrency == 8
    assert found.doubling_gain is not None and found.doubling_gain <= 0.03


def test_with_noise_of_one_percent_a_flat_server_is_nearly_always_called_flat_and_a_rise_of_a_tenth_never() -> None:
    """200 seeded searches of each kind; one load's median has 1% noise."""
    flat = rising = 0
    for seed in range(200):
        noise = random.Random(seed)
        _, found = play(plan(), lambda step, noise=noise: 18.0 * noise.gauss(1, 0.01))  # type: ignore[misc]
        flat += (found.doubling_gain or 0) <= 0.03
        _, found = play(
            plan(),
            lambda step, noise=noise: (18.0 if step.concurrency == 8 else 19.8) * noise.gauss(1, 0.01),  # type: ignore[misc]
        )
        rising += (found.doubling_gain or 0) <= 0.03
    assert flat >= 195
    assert rising == 0


def test_a_single_point_is_measured_without_a_search() -> None:
    done, found = play(plan(concurrency=5), lambda step: 18.0)
    assert short(done) == [("figure", 5, 1), ("cross_check", 5, 1)] * 2
    assert found == Found(doubling_gain=None, sender_gain=None, concurrency=5, senders=1)


def test_a_cross_check_that_failed_twice_is_given_up_and_the_figure_is_finished() -> None:
    done, _ = play(plan(), lambda step: None if step.purpose == "cross_check" else 18.0)
    assert short(done)[3:] == [("figure", 8, 1), ("cross_check", 8, 1), ("cross_check", 8, 1), ("figure", 8, 1)]


def test_without_a_cross_check_only_the_figure_is_measured() -> None:
    done, _ = play(plan(cross_check=False), lambda step: 18.0)
    assert {d.step.purpose for d in done} == {"search", "one_more_sender", "figure"}


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_load_that_gave_no_window_ends_the_experiment(at: int) -> None:
    rates = iter([18.0] * at)
    done, _ = play(plan(), lambda step: next(rates, None))
    assert len(done) == at + 1


def load(concurrency: int, rate: float, busy_ms: float, batch: float = 4.0) -> Done:
    step = Step(purpose="search", concurrency=concurrency, senders=1)
    return Done(step=step, rates=(rate,), busy_s_per_item=busy_ms / 1e3, effective_batch=batch)


def test_a_machine_that_got_faster_between_two_loads_is_no_gain() -> None:
    """Measured on shared cores: 15.0 and 17.9 images/s, 66.5 and 55.6 ms of engine time each, busy 99.8% both times."""
    done = [load(8, 15.00, 66.50), load(16, 17.93, 55.58)]
    assert point_gain(done, (8, 1), (16, 1)) == pytest.approx(-0.001, abs=0.001)


def test_an_engine_that_waited_less_is_a_gain_even_if_the_machine_got_slower() -> None:
    """The client kept it busy 50% of the time, then 90%: 1.8 times, though each item took a tenth longer."""
    done = [load(8, 50.0, 10.0), load(16, 0.9 / 11e-3, 11.0)]
    assert point_gain(done, (8, 1), (16, 1)) == pytest.approx(0.8)


def test_larger_batches_are_a_gain_that_the_engine_time_must_not_hide() -> None:
    """Batches of 4 need less engine time an item than batches of 2: rates are compared as they are."""
    done = [load(8, 60.0, 16.0, batch=2.0), load(16, 80.0, 12.0, batch=4.0)]
    assert point_gain(done, (8, 1), (16, 1)) == pytest.approx(1 / 3)


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


@pytest.mark.parametrize(("single", "senders"), [(True, 1), (False, 1), (False, 2)])
def test_no_experiment_takes_more_loads_than_was_announced(single: bool, senders: int) -> None:
    asked = plan(concurrency=8 if single else None, senders=senders, max_senders=4)
    bound = most_loads(single_point=single, senders=senders, max_senders=4, rounds=3)
    for seed in range(50):
        noise = random.Random(seed)
        done, _ = play(asked, lambda step, noise=noise: noise.uniform(10, 20))  # type: ignore[misc]
        assert len(done) <= bound
        growing, _ = play(asked, lambda step, noise=noise: step.senders * step.concurrency * noise.gauss(1, 0.2))  # type: ignore[misc]
        assert len(growing) <= bound


def test_gain_is_a_fraction_of_the_first() -> None:
    done = [
        Done(step=Step(purpose="search", concurrency=8, senders=1), rates=(20.0,)),
        Done(step=Step(purpose="search", concurrency=16, senders=1), rates=(21.0,)),
    ]
    assert point_gain(done, (8, 1), (16, 1)) == pytest.approx(0.05)
    assert point_gain(done, (8, 1), (32, 1)) is None
