"""Ways to do the same work, run in turns on one machine, and the ratio of what two of them reach with its spread.

Pure but for the runs themselves. Machines drift (shared hosts, heat): only what ran side by side is compared, and
every round of runs gives one ratio.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: What one run reached, by the name of the figure; more is better.
Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The least ratio of one figure that must hold, and the one aimed at."""

    figure: str
    least: float
    aim: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One figure of two sides over the rounds, held against its bound."""

    name: str
    ours: str
    peer: str
    ours_values: tuple[float, ...]
    peer_values: tuple[float, ...]
    bound: Bound

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours over the peer's, round by round."""
        return tuple(ours / peer for ours, peer in zip(self.ours_values, self.peer_values, strict=True))

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def held(self) -> bool:
        return self.ratio >= self.bound.least


def in_turns(sides: Mapping[str, Callable[[], Figures]], rounds: int) -> list[dict[str, Figures]]:
    """Every side once a round; every second round runs backwards, so that a steady drift favours nobody."""
    reached = []
    for number in range(rounds):
        order = list(sides)[:: -1 if number % 2 else 1]
        reached.append({side: sides[side]() for side in order})
    return reached


def compare(name: str, rounds: Sequence[Mapping[str, Figures]], bound: Bound, *, ours: str, peer: str) -> Comparison:
    """One figure of two of the sides."""
    return Comparison(
        name=name,
        ours=ours,
        peer=peer,
        ours_values=tuple(each[ours][bound.figure] for each in rounds),
        peer_values=tuple(each[peer][bound.figure] for each in rounds),
        bound=bound,
    )


def table(comparisons: Sequence[Comparison]) -> str:
    """A line each: the medians of both sides, the median of the ratios and their spread, bound, aim, verdict."""
    rows = [("what", "ours", "peer", "ratio", "spread", "bound", "aim", ""), *map(_row, comparisons)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def _row(comparison: Comparison) -> tuple[str, ...]:
    bound, ratios = comparison.bound, comparison.ratios
    return (
        f"{comparison.name}: {bound.figure}, {comparison.ours} / {comparison.peer}",
        f"{statistics.median(comparison.ours_values):,.0f}",
        f"{statistics.median(comparison.peer_values):,.0f}",
        f"{comparison.ratio:.2f}",
        f"{min(ratios):.2f} to {max(ratios):.2f}",
        f"{bound.least:g}",
        "" if bound.aim is None else f"{bound.aim:g}",
        "held" if comparison.held else "MISSED",
    )


def document(comparison: Comparison) -> dict[str, Any]:
    """A comparison for a JSON file, its ratios and verdict beside the figures that they are made of."""
    derived = {"ratio": comparison.ratio, "ratios": list(comparison.ratios), "held": comparison.held}
    return {**asdict(comparison), **derived}
