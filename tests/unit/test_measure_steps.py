"""Which load comes next, against a simulated server whose capacity, noise and slow client are known."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from experiments.measure.steps import Done, Found, Plan, Step, findings, gain, next_step

Rate = Callable[[Step], float | None]


def plan(**changes: object) -> Plan:
    values: dict[str, object] = {
        "full": 8, "concurrency": None, "senders": 1, "max_senders": 3, "rounds": 3, "cross_check": True,
    }  # fmt: skip
    return Plan(**{**values, **changes})  # type: ignore[arg-type]  # a test builder


def play(asked: Plan, rate: Rate) -> tuple[list[Done], Found]:
    done: list[Done] = []
    while (step := next_step(asked, done)) is not None:
        done.append(Done(step=step, items_per_s=rate(step)))
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


def test_gain_is_a_fraction_of_the_first() -> None:
    done = [
        Done(step=Step(purpose="search", concurrency=8, senders=1), items_per_s=20.0),
        Done(step=Step(purpose="search", concurrency=16, senders=1), items_per_s=21.0),
    ]
    assert gain(done, (8, 1), (16, 1)) == pytest.approx(0.05)
    assert gain(done, (8, 1), (32, 1)) is None
