"""What the benchmarks conclude from runs in turns."""

from __future__ import annotations

from functools import partial

import pytest

from benchmarks.side_by_side import Bound, Comparison, compare, document, in_turns, table

RATE = Bound(figure="items/s", least=1.25, aim=1.5)


def compared(ours: list[float], peer: list[float], bound: Bound = RATE) -> Comparison:
    rounds = [{"A": {bound.figure: a}, "B": {bound.figure: b}} for a, b in zip(ours, peer, strict=True)]
    return compare("null", rounds, bound, ours="A", peer="B")


def test_a_machine_that_slows_down_leaves_the_ratio_alone() -> None:
    assert compared([200.0, 100.0, 50.0], [100.0, 50.0, 25.0]).ratios == (2.0, 2.0, 2.0)


def test_one_disturbed_round_does_not_decide() -> None:
    comparison = compared([130.0, 131.0, 20.0, 132.0, 133.0], [100.0] * 5)
    assert comparison.ratio == 1.31
    assert comparison.held


@pytest.mark.parametrize(("ours", "held"), [(125.0, True), (124.9, False)])
def test_a_bound_holds_from_its_own_value_on(ours: float, held: bool) -> None:
    assert compared([ours], [100.0]).held is held


def test_every_second_round_runs_backwards() -> None:
    ran: list[str] = []

    def side(name: str) -> dict[str, float]:
        ran.append(name)
        return {"items/s": float(len(ran))}

    reached = in_turns({name: partial(side, name) for name in "ABC"}, 3)
    assert "".join(ran) == "ABC" + "CBA" + "ABC"
    assert [each["A"]["items/s"] for each in reached] == [1.0, 6.0, 7.0]


def test_the_table_tells_medians_ratio_spread_and_verdict() -> None:
    head, held, missed = table([compared([150.0, 160.0, 170.0], [100.0] * 3), compared([1.0], [1.0])]).splitlines()
    assert head.split() == ["what", "ours", "peer", "ratio", "spread", "bound", "aim"]
    assert held.split() == [
        "null:",
        "items/s,",
        "A",
        "/",
        "B",
        "160",
        "100",
        "1.60",
        "1.50",
        "to",
        "1.70",
        "1.25",
        "1.5",
        "held",
    ]
    assert missed.endswith("MISSED")


def test_the_file_has_every_run_and_what_follows_from_them() -> None:
    written = document(compared([3.0, 5.0], [2.0, 2.0]))
    assert (written["ours_values"], written["peer_values"]) == ((3.0, 5.0), (2.0, 2.0))
    assert (written["ratios"], written["ratio"], written["held"]) == ([1.5, 2.5], 2.0, True)
