"""The verdict: every pair of its order of precedence, each threshold at and above, and the load point."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from brim.records import Verdict
from judging.verdict import Facts, because, gain, load_point, verdict

#: What makes each verdict, in the order of precedence.
CAUSES: dict[Verdict, dict[str, Any]] = {
    Verdict.ABORTED: {"aborted": True},
    Verdict.SERVER_LOST: {"server_lost": True},
    Verdict.FAILING: {"not_ok_share": 0.011},
    Verdict.CLIENT_LIMITED: {"further_sender_gain": 0.031},
    Verdict.UNSTABLE: {"unstable": True},
    Verdict.POINT: {"single_point": True},
    Verdict.STILL_RISING: {"doubling_gain": 0.031},
    Verdict.SATURATED: {"doubling_gain": 0.03},
}


@pytest.mark.parametrize("one", list(CAUSES))
def test_each_verdict_has_its_cause(one: Verdict) -> None:
    assert verdict(Facts(**CAUSES[one])) is one
    assert because(Facts(**CAUSES[one]))


@pytest.mark.parametrize(("first", "second"), list(combinations(CAUSES, 2)))
def test_of_two_verdicts_the_first_in_the_order_applies(first: Verdict, second: Verdict) -> None:
    assert verdict(Facts(**{**CAUSES[second], **CAUSES[first]})) is first


def test_all_causes_together_are_an_abort() -> None:
    everything: dict[str, Any] = {}
    for cause in CAUSES.values():
        everything |= cause
    assert verdict(Facts(**everything)) is Verdict.ABORTED


@pytest.mark.parametrize(
    "at_the_bound", [{"not_ok_share": 0.01}, {"further_sender_gain": 0.03}, {"further_sender_gain": -0.2}]
)
def test_what_is_just_within_its_bound_does_not_spoil_a_number(at_the_bound: dict[str, Any]) -> None:
    assert verdict(Facts(doubling_gain=0.0, **at_the_bound)) is Verdict.SATURATED


def test_a_plateau_that_was_never_looked_for_is_not_claimed() -> None:
    assert verdict(Facts()) is Verdict.STILL_RISING
    assert because(Facts()) == "the load was never doubled, so no plateau is known"


def test_a_rate_that_falls_at_twice_the_load_is_saturated() -> None:
    assert verdict(Facts(doubling_gain=-0.4)) is Verdict.SATURATED


def test_gain_is_relative_to_what_was_before() -> None:
    assert gain(100.0, 103.0) == pytest.approx(0.03)
    assert gain(100.0, 50.0) == -0.5
    assert gain(0.0, 5.0) == float("inf")
    assert gain(0.0, 0.0) == 0.0


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({8: 100.0}, 8),
        ({8: 100.0, 16: 102.9}, 8),
        ({8: 100.0, 16: 103.1}, 16),
        ({1: 50.0, 2: 50.5, 4: 98.0, 8: 100.0, 16: 99.0}, 4),  # a flat start is no plateau
        ({16: 99.0, 8: 100.0}, 8),
    ],
)
def test_the_load_point_is_the_lowest_within_three_percent_of_the_best(rates: dict[int, float], chosen: int) -> None:
    assert load_point(rates) == chosen
