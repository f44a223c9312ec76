"""Whether the interval of the rate at an SLO holds what it says: `python -m benchmarks.slo_coverage [--servers NAME…]`.

Seeded searches on simulated servers whose overheads, noise and way to the client the search is not told. The truth is a
long simulation, or the closed form. Writes OUT/bench/. Exit code 1 if an interval covers less than it must, or a
search of a sleeping server takes longer or is further off than it may.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.served import keep, outcome
from benchmarks.simulated_probe import SimulatedProbe, TrueServer, contending, memoryless, sleeping, slow
from brim.records import Slo
from experiments.measure.slo import search
from experiments.measure.slo_profile import Sought

#: An interval that claims 95%, of a search whose model is only nearly right.
COVERS = 0.92
OFF_MOST, LONGEST_S = 0.02, 120.0  # of a search of a sleeping server
TRUTH_RUNS = 12  # of eight million simulated requests each
HEAD = (
    "server", "SLO", "truth", "searches", "resolved", "covered", "without", "half-width", "sd", "furthest", "s",
    "model",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One server under one SLO."""

    server: TrueServer
    slo: Slo
    high: float  # items/s that it cannot do
    searches: int
    model_free: bool = False
    judged: bool = False  # by the requirements on a sleeping server

    @property
    def name(self) -> str:
        return self.server.name + (", data alone" if self.model_free else "")

    def truth(self) -> float:
        """Items/s at the SLO."""
        if self.server.exponential:
            service_s = float(self.server.service.seconds[0, 0])
            return 1 / service_s + math.log(self.slo.over_allowed) / (self.slo.limit_ms / 1e3)
        return self.server.rate_at(self.slo, self.high, TRUTH_RUNS)


P99 = Slo(limit_ms=100.0, percentile=99.0)
CASES = (
    Case(server=sleeping(1), slo=P99, high=400.0, searches=400, judged=True),
    Case(server=sleeping(2), slo=P99, high=800.0, searches=100, judged=True),
    Case(server=contending(), slo=P99, high=600.0, searches=100),
    Case(server=memoryless(), slo=Slo(limit_ms=20.0, percentile=99.0), high=1000.0, searches=100),
    Case(server=slow(), slo=Slo(limit_ms=1600.0, percentile=95.0), high=13.0, searches=100),
    Case(server=sleeping(1), slo=P99, high=400.0, searches=100, model_free=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """One search; ln of its answer by the truth."""

    verdict: str
    given: str
    off: float | None
    half_width: float | None  # in ln(rate)
    seconds: float  # that it would have taken

    @property
    def covered(self) -> bool:
        """Whether there is an interval that holds the truth."""
        return self.off is not None and self.half_width is not None and abs(self.off) <= self.half_width


def searched(case: Case, truth: float, seed: int, *, simulated: int | None = None) -> Searched:
    """One search on fresh noise and fresh arrivals."""
    probe = SimulatedProbe(case.server, seed)
    sought = Sought(
        limit_ms=case.slo.limit_ms, percentile=case.slo.percentile, model_free=case.model_free, seed=1000 * seed,
        **({} if simulated is None else {"simulated": simulated}),
    )  # fmt: skip
    found = search(probe, case.server.batcher, sought, clock=probe.clock)
    return Searched(
        verdict=found.verdict,
        given=found.given,
        off=math.log(found.items_per_s / truth) if found.items_per_s else None,
        half_width=math.log(found.ci95[1] / found.items_per_s) if found.ci95 and found.items_per_s else None,
        seconds=found.seconds_spent,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Studied:
    """All searches of one case."""

    name: str
    slo: Slo
    judged: bool
    truth: float
    searches: tuple[Searched, ...]

    @property
    def coverage(self) -> float:
        """Share of all searches: one without an interval covers nothing."""
        return statistics.fmean(one.covered for one in self.searches)

    @property
    def without(self) -> int:
        """Searches that ended without an interval."""
        return sum(one.half_width is None for one in self.searches)

    @property
    def furthest(self) -> float:
        return max((abs(one.off) for one in self.searches if one.off is not None), default=math.inf)

    @property
    def longest_s(self) -> float:
        return max(one.seconds for one in self.searches)

    @property
    def held(self) -> bool:
        return not self.judged or (
            self.coverage >= COVERS and self.furthest <= OFF_MOST and self.longest_s <= LONGEST_S
        )


def study(case: Case, searches: int, pool: ProcessPoolExecutor) -> Studied:
    """So many searches, each with its own seed."""
    truth = case.truth()
    found = tuple(pool.map(partial(searched, case, truth), range(searches)))
    return Studied(name=case.name, slo=case.slo, judged=case.judged, truth=truth, searches=found)


def table(studied: Sequence[Studied]) -> str:
    """A line for each case."""
    rows = [HEAD, *map(_row, studied)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _row(one: Studied) -> tuple[str, ...]:
    offs = [found.off for found in one.searches if found.off is not None]
    widths = [found.half_width for found in one.searches if found.half_width is not None]
    return (
        one.name,
        f"p{one.slo.percentile:g} {one.slo.limit_ms:g} ms",
        f"{one.truth:.5g}",
        str(len(one.searches)),
        f"{statistics.fmean(found.verdict == 'resolved' for found in one.searches):.0%}",
        f"{one.coverage:.1%}",
        str(one.without),
        f"{statistics.fmean(widths):.2%}" if widths else "none",
        f"{statistics.stdev(offs):.2%}" if len(offs) > 1 else "none",
        f"{one.furthest:.2%}",
        f"{statistics.fmean(found.seconds for found in one.searches):.0f} ({one.longest_s:.0f})",
        f"{statistics.fmean(found.given == 'model' for found in one.searches):.0%}" + ("" if one.held else "  MISSED"),
    )


def main(arguments: Sequence[str]) -> int:
    """Every case in turn; what was found is printed as it comes."""
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.slo_coverage", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the JSON goes")
    parser.add_argument("--servers", nargs="+", choices=names, default=names)
    parser.add_argument("--searches", type=int, help="of each server, instead of its own number")
    told = parser.parse_args(arguments)
    studied: list[Studied] = []
    with ProcessPoolExecutor() as pool:
        for case in CASES:
            if case.name in told.servers:
                studied.append(study(case, told.searches or case.searches, pool))
                print(table(studied[-1:]), flush=True)
    held = all(one.held for one in studied)
    file = keep(told.out, "slo-coverage", studied)
    print(f"\n{table(studied)}\n{'held' if held else 'MISSED'}: at least {COVERS:.0%} covered; kept in {file}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(outcome(main))
