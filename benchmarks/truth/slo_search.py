"""The search for the rate at an SLO, five times as users run it, against the truth of the long loads.

Beside it perf_analyzer's own search on the same server: its answer, its error, its seconds.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace

from benchmarks import search
from benchmarks.served import Served
from benchmarks.truth.journal import Book, Line, at_most, told, within
from benchmarks.truth.loads import brim_loadtest, fresh
from benchmarks.truth.slo_truth import SLO, crossing, points_of, server
from brim import disk, layout
from brim.errors import Lost, NotReady
from brim.records import SloRate
from experiments.measure.run import exclusive
from loadtest import perf_analyzer_command

TOLERANCE = 0.02
SEARCHES = 5
MOST_S = 120.0
TRUTHS = ("slo-truth", "slo-truth-perf_analyzer")
#: perf_analyzer's range of rates and its step, as somebody gives it who knows the capacity.
RANGE = (200, 380, 5)
PEER_LIMIT_S = 600.0
_POINT = re.compile(r"^Request Rate: ([0-9.]+), throughput: [0-9.]+ infer/sec, latency (\d+) usec", re.MULTILINE)


def run(book: Book) -> None:
    """Truth and simulator, the five searches, and the peer's."""
    truth = truth_of([book.earlier(part) for part in TRUTHS], book)
    with fresh(server(), book.folder) as on:
        for number in range(max(1, round(book.scaled(SEARCHES, least=1)))):
            book.add(*_search(on, number + 1, truth))
        book.add(_peer(on, truth))


def truth_of(figures: list[Mapping[str, float]], book: Book) -> float:
    """The crossing of all long loads of both generators; beside it the simulator's rate on their service times."""
    found = crossing([point for each in figures for point in points_of(each)])
    if found is None:
        raise Lost(f"the shares of {' and '.join(TRUTHS)} do not rise with the rate")
    simulated = sum(each["simulated"] for each in figures) / len(figures)
    book.add(
        told("rate at the SLO by the long loads of both generators", found.words),
        within("the simulator's rate at the SLO", simulated, found.rate, TOLERANCE, "/s"),
    )
    return found.rate


def _search(on: Served, number: int, truth: float) -> list[Line]:
    """One search; one that came to nothing missed its bound, and the others stand."""
    started_s = time.monotonic()
    percentile = ("--slo-ms", f"{SLO.limit_ms:g}", "--percentile", f"{SLO.percentile:g}")
    try:
        folder = brim_loadtest(on, *percentile, "--slo-only")
        spent_s = time.monotonic() - started_s
        answer = disk.load(SloRate, folder / "slo.json")
    except (Lost, NotReady) as error:
        nothing = within(_what(number), None, truth, TOLERANCE, "/s")
        return [replace(nothing, measured=f"no answer: {error}")]
    return search_lines(number, answer, spent_s, truth)


def _what(number: int) -> str:
    return f"search {number}: rate at the SLO"


def search_lines(number: int, answer: SloRate, spent_s: float, truth: float) -> list[Line]:
    """Its answer and its seconds; the interval stands beside."""
    low, high = answer.ci95 or (0.0, 0.0)
    interval = f"{low:.2f} to {high:.2f}/s given the {answer.given}, {answer.verdict} {answer.model_rejected}".rstrip()
    return [
        within(
            _what(number),
            answer.items_per_s if answer.verdict == "resolved" else None,
            truth,
            TOLERANCE,
            "/s",
        ),
        at_most(f"search {number}: seconds, from the command to its prompt", spent_s, MOST_S, " s"),
        told(f"search {number}: interval", interval if answer.ci95 else f"none, {answer.verdict} {answer.reason}"),
    ]


def _peer(on: Served, truth: float) -> Line:
    """Of the rates that it lists, the largest that met the limit; none if it takes too long over them."""
    started_s, said = time.monotonic(), ""
    asked = (
        *("--request-rate-range", ":".join(map(str, RANGE)), "--binary-search", "-l", f"{SLO.limit_ms:g}"),
        *("--percentile", f"{SLO.percentile:g}", "--request-distribution", "poisson", *search.TRUTH_MODE),
    )
    with exclusive(), contextlib.suppress(subprocess.TimeoutExpired):
        said = subprocess.run(
            search.perf_analyzer(on, *asked), env=perf_analyzer_command.environment(layout.perf_analyzer_libraries()),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=PEER_LIMIT_S, check=False,
        ).stdout  # fmt: skip
    return peer_line(said, time.monotonic() - started_s, truth)


def peer_line(said: str, spent_s: float, truth: float) -> Line:
    """perf_analyzer's answer, which nothing is asked of."""
    good = [float(rate) for rate, latency_us in _POINT.findall(said) if int(latency_us) <= SLO.limit_ms * 1e3]
    answer = f"{max(good):.4g}/s ({max(good) / truth - 1:+.2%})" if good else "no answer"
    return told("perf_analyzer --binary-search", f"{answer} after {spent_s:.0f} s")
