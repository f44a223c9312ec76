"""How often the interval of the search holds the truth: hundreds of seeded searches on a simulated server.

The server is benchmarks/slo_coverage.py's sleeping one, whose overheads, noise and way to the client the search is not
told. A search that ends without an interval does not cover, and is told.
"""

from __future__ import annotations

import statistics
from concurrent.futures import ProcessPoolExecutor

from benchmarks import slo_coverage
from benchmarks.slo_coverage import Studied
from benchmarks.truth.journal import Book, Line, told

CASE = slo_coverage.CASES[0]
LEAST = 0.92
SEARCHES = 400


def run(book: Book) -> None:
    """All of them, on all cores."""
    with ProcessPoolExecutor() as pool:
        studied = slo_coverage.study(CASE, round(book.scaled(SEARCHES, least=4)), pool)
    book.add(*lines(studied))


def lines(studied: Studied) -> list[Line]:
    """The share that covers, and how far off and how wide."""
    offs = [abs(one.off) for one in studied.searches if one.off is not None]
    widths = [one.half_width for one in studied.searches if one.half_width is not None]
    count = len(studied.searches)
    spread = (
        f"median {statistics.median(offs):.2%}, most {max(offs):.2%}; half width {statistics.fmean(widths):.2%}"
        if widths
        else "no interval at all"
    )
    return [
        Line(
            what=f"{studied.name}: intervals that hold the truth ({count} searches)", bound=f"at least {LEAST:.0%}",
            measured=f"{studied.coverage:.1%}, {studied.without} without an interval", held=studied.coverage >= LEAST,
        ),
        told(f"{studied.name}: off the truth", spread),
    ]  # fmt: skip
