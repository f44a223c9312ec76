"""Capacity: `brim loadtest` with two full batches an instance, against the log while perf_analyzer keeps it full.

The truth is taken before and after Brim, as the machine may drift; no run that is judged is part of it. Whether the
search finds that load by itself is benchmarks/search.py's question.
"""

from __future__ import annotations

import statistics
import subprocess

from benchmarks import search
from benchmarks.served import Served
from benchmarks.truth.journal import Book, Line, told, within
from benchmarks.truth.loads import brim_loadtest, fresh
from brim import disk, layout
from brim.records import LoadPoint, Saturation
from experiments.calibrate.plan import variant
from experiments.measure.run import exclusive
from loadtest import perf_analyzer_command
from loadtest.perf_analyzer_output import csv_rate

TOLERANCE = 0.01
SERVICE_MS, MAX_BATCH = 20.0, 8


def run(book: Book) -> None:
    """One and two instances."""
    for instances in (1, 2):
        sleep = variant("sleep", {"service_ms": SERVICE_MS}, max_batch=MAX_BATCH, instances=instances)
        with fresh(sleep, book.folder / f"k{instances}") as on:
            book.add(*measure(on, book, instances))


def measure(on: Served, book: Book, instances: int) -> list[Line]:
    """Truth, Brim, truth, and what perf_analyzer says itself."""
    seconds = book.scaled(search.TRUTH_S)
    before = _truth(on, instances, seconds)
    at = ("--concurrency", str(on.target.full), "--no-cross-check")
    answer = disk.load(Saturation, brim_loadtest(on, *at) / "saturation.json")
    after = _truth(on, instances, seconds)
    what, truth = f"sleep, k={instances}: capacity", statistics.fmean((before, after))
    in_flight = on.target.full
    return [
        within(f"{what} by Brim", answer.items_per_s, truth, TOLERANCE, "/s"),
        told(f"{what} by its log, before and after", f"{before:.2f} and {after:.2f}/s"),
        told(f"{what} by perf_analyzer itself, {in_flight} in flight", _own(on, in_flight, truth)),
    ]


def _truth(on: Served, instances: int, seconds: float) -> float:
    with exclusive():
        return instances * MAX_BATCH / search.truth_ms(on, MAX_BATCH, seconds=seconds) * 1e3


def _own(on: Served, in_flight: int, truth: float) -> str:
    """perf_analyzer decides how long it looks."""
    csv = on.folder / "perf_analyzer.csv"
    with exclusive():
        subprocess.run(
            search.perf_analyzer(on, *search.CLOSED, str(in_flight), *search.TRUTH_MODE, "-f", str(csv)),
            env=perf_analyzer_command.environment(layout.perf_analyzer_libraries()),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            timeout=search.POINT_LIMIT_S, check=False,
        )  # fmt: skip
    rate = csv_rate(csv.read_text(encoding="utf-8"), LoadPoint(concurrency=in_flight)) if csv.exists() else None
    return "no figure" if rate is None else f"{rate:.4g}/s ({rate / truth - 1:+.2%})"
