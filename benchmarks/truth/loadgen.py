"""MLPerf LoadGen as a third generator, on a known server and on a network: Offline and Server, beside Brim's figures.

Its verdict is of our settings, which are far shorter than MLPerf's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.served import Served, load_spec
from benchmarks.truth.journal import Book, Line, told
from benchmarks.truth.loads import closed, fresh, poisson_load
from benchmarks.truth.network import SMALL, served_small
from brim.errors import Lost, NotReady
from brim.records import LoadPoint
from experiments.calibrate.plan import variant
from experiments.measure.run import exclusive
from judging.slo_observed import Observed, latencies, throughput
from loadtest import loadgen
from loadtest.loadgen import Settings, Summary
from loadtest.loadgen_driver import LoadGenDriver, available

LOAD_S = 12.0
LOAD = 0.75  # of the capacity, for Server
#: Of a full batch's time: a limit that a server at that load keeps.
LIMIT_BATCHES = 10.0
SLOTS = 128  # connections of its pool
OFFLINE_AGREES = 0.05  # as any two generators on shared cores


def run(book: Book) -> None:
    """Both servers."""
    if (why := available()) is not None:
        raise NotReady(why)
    sleep = variant("sleep", {"service_ms": 20.0}, max_batch=8, instances=1)
    with fresh(sleep, book.folder / "sleep") as on:
        _both(on, book, "sleep")
    with served_small(book) as on:
        _both(on, book, SMALL.name)


def _both(on: Served, book: Book, name: str) -> None:
    seconds = book.scaled(LOAD_S)
    full = on.target.full
    load = closed(on, full, seconds=seconds)
    capacity = throughput(load, round(1e9 * on.variant.config.max_batch / _roughly(load)))
    offline = _loadgen(on, LoadPoint(concurrency=full, sender="loadgen"), Settings(expected_per_s=capacity), seconds)
    book.add(valid(f"{name}: LoadGen Offline", offline), offline_line(name, offline, capacity))
    rate, limit_ms = LOAD * capacity, 1e3 * LIMIT_BATCHES * on.variant.config.max_batch / capacity
    point = LoadPoint(mode="open", rate_per_s=rate, arrivals="poisson", outstanding=SLOTS, seed=1, sender="loadgen")
    server = _loadgen(on, point, Settings(latency_ms=limit_ms), seconds)
    book.add(valid(f"{name}: LoadGen Server at {rate:.0f}/s, p99 within {limit_ms:.0f} ms", server))
    ours_ms = 1e3 * latencies(poisson_load(on, rate=rate, seconds=seconds, seed=1)).mean()
    book.add(
        told(
            f"{name}: LoadGen Server at {rate:.0f}/s, mean latency",
            f"{server.mean_ms:.2f} ms; Brim's {ours_ms.mean():.2f}",
        )
    )


def _roughly(load: Observed) -> float:
    """Items a second, edges and all: good enough to tell batches apart."""
    return float(load.rows["items"].sum()) / ((load.end_ns - load.start_ns) / 1e9)


def _loadgen(on: Served, point: LoadPoint, settings: Settings, seconds: float) -> Summary:
    spec = replace(load_spec(on, 1, seconds=seconds), point=point)
    folder = Path(spec.folder)
    with exclusive():
        result = LoadGenDriver(settings).start(spec, folder).finish()
    file = folder / loadgen.SUMMARY
    found = loadgen.read_summary(file.read_text(encoding="utf-8")) if file.exists() else None
    if found is None:
        raise Lost(f"LoadGen left no summary: {result.ended} {result.reason}")
    return found


def valid(what: str, summary: Summary) -> Line:
    """Its own verdict."""
    verdict = "VALID" if summary.valid else f"INVALID: {', '.join(summary.unmet)}"
    return Line(
        what=what, bound="VALID under our settings", measured=f"{summary.samples_per_s:.4g}/s, {verdict}",
        held=summary.valid,
    )  # fmt: skip


def offline_line(name: str, summary: Summary, ours: float) -> Line:
    """Its rate counts from the first sample to the last, start and end with them."""
    off = summary.samples_per_s / ours - 1
    return Line(
        what=f"{name}: LoadGen Offline beside Brim's capacity", bound=f"within {OFFLINE_AGREES:.0%} of {ours:.4g}/s",
        measured=f"{summary.samples_per_s:.4g}/s ({off:+.2%})", held=abs(off) <= OFFLINE_AGREES,
    )  # fmt: skip
