"""Whether the search finds what is known: `python -m benchmarks.search [--out OUT] [--servers NAME…]`.

Five servers that sleep. The truth of each is its own log while perf_analyzer keeps it full, before Brim and after,
as the machine may drift meanwhile; `brim loadtest`, as users run it, must come within 2% of that. Beside Brim's time
stands that of perf_analyzer over the same points. Writes OUT/bench/. Exit code 1 if a figure is off.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.served import Served, keep, outcome, served
from brim import disk, guard, layout
from brim.errors import Lost
from brim.records import Load, Saturation, ServingConfig, Variant, Window
from experiments.measure.run import exclusive
from loadtest import perf_analyzer_command, supervise
from serve.configs import resolve
from serve.executions import Execution, executions_by_instance
from serve.known import known_server

TOLERANCE = 0.02
WARM_S, TRUTH_S = 2.0, 15.0
CLOSED = ("--concurrency-range",)
#: One thread: as many threads as requests, its way otherwise, take so much of two cores that the server slows by 3%.
TRUTH_MODE = ("--async", "--max-threads", "1")
#: A start from one full batch to the next counts only where nearly all are full: else the server was not kept full.
FULL_SHARE = 0.9
LOADTEST_LIMIT_S = 900.0
POINT_LIMIT_S = 180.0  # of perf_analyzer: ten windows of 5 s, which may stretch
HEAD = (
    *("ms,B,k", "k*B/P", "Brim", "off", "P ms, twice", "P under Brim", "off by that", "verdict", "in flight"),
    *("Brim s", "ladder s", "points"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleeper:
    """A server whose batches take `service_ms`, up to `max_batch` items each, on `instances` instances."""

    service_ms: float
    max_batch: int
    instances: int

    @property
    def name(self) -> str:
        return f"b{self.max_batch}" + (f"x{self.instances}" if self.instances > 1 else "")

    @property
    def variant(self) -> Variant:
        config = ServingConfig(name=self.name, max_batch=self.max_batch, instances=self.instances)
        resolved = resolve(config, mode="embedded", known=True)
        return Variant(model=known_server("sleep", {"service_ms": self.service_ms}), config=resolved)


SLEEPERS = (
    Sleeper(service_ms=20, max_batch=8, instances=1),
    Sleeper(service_ms=20, max_batch=8, instances=2),
    Sleeper(service_ms=40, max_batch=4, instances=1),
    Sleeper(service_ms=10, max_batch=16, instances=1),
    Sleeper(service_ms=30, max_batch=1, instances=2),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found of one server."""

    server: Sleeper
    periods_ms: tuple[float, ...]  # from a full batch's start to the next one's, each time perf_analyzer kept it full
    items_per_s: float | None  # Brim's figure
    verdict: str
    concurrency: int | None  # of the load point
    period_under_brim_ms: float | None  # the same from the same log, during the windows that the figure is of
    seconds_spent: float
    points: tuple[int, ...]  # that Brim's search loaded
    ladder_seconds: float  # of perf_analyzer over these points

    @property
    def capacity(self) -> float:
        return self._rate(statistics.fmean(self.periods_ms))

    @property
    def off(self) -> float | None:
        return None if self.items_per_s is None else self.items_per_s / self.capacity - 1

    @property
    def off_own(self) -> float | None:
        """Against what the server logged under Brim's own load: how wrong Brim counts, whatever the machine did."""
        if self.items_per_s is None or self.period_under_brim_ms is None:
            return None
        return self.items_per_s / self._rate(self.period_under_brim_ms) - 1

    @property
    def held(self) -> bool:
        return self.off is not None and abs(self.off) <= TOLERANCE and self.verdict == "saturated"

    def _rate(self, period_ms: float) -> float:
        return self.server.instances * self.server.max_batch / period_ms * 1e3


def full_period_ms(logs: Mapping[str, Sequence[Execution]], max_batch: int, start_ns: int, end_ns: int) -> float:
    """Mean time from one full batch's start to the next one's on the same instance; Lost if few of them are full."""
    pairs = [
        pair for executions in logs.values() for pair in pairwise(e for e in executions if start_ns <= e[0] < end_ns)
    ]
    gaps_ns = [later[0] - earlier[0] for earlier, later in pairs if earlier[2] == later[2] == max_batch]
    if not gaps_ns or len(gaps_ns) < FULL_SHARE * len(pairs):
        raise Lost(f"only {len(gaps_ns)} of {len(pairs)} batches were full: the server was not kept busy")
    return statistics.fmean(gaps_ns) / 1e6


def search(server: Sleeper) -> Found:
    """The truth, Brim, and perf_analyzer's ladder, one after the other on one live server."""
    with tempfile.TemporaryDirectory(prefix="brim-bench-") as place:
        folder = Path(place)
        with served(server.variant, folder, models=folder) as on:
            with exclusive():
                before_ms = truth_ms(on, server.max_batch)
            answer = loadtest(on)
            run = layout.run_folder(folder, answer.run)
            loads = disk.load_lines(Load, run / "loads.jsonl")
            points = tuple(sorted({load.point.concurrency or 0 for load in loads if load.purpose == "search"}))
            with exclusive():
                after_ms = truth_ms(on, server.max_batch)
                ladder_s = sum(_point_s(on, concurrency) for concurrency in points)
            return Found(
                server=server,
                periods_ms=(before_ms, after_ms),
                items_per_s=answer.items_per_s,
                verdict=answer.verdict,
                concurrency=answer.at.concurrency,
                period_under_brim_ms=_under_brim_ms(on, server, run, loads),
                seconds_spent=answer.seconds_spent,
                points=points,
                ladder_seconds=ladder_s,
            )


def truth_ms(on: Served, max_batch: int, *, seconds: float = TRUTH_S) -> float:
    """The period of its full batches by its own log, while perf_analyzer keeps twice as many in flight as fill it."""
    longer_ms = f"{10_000 * (WARM_S + seconds):.0f}"  # than it may run
    with subprocess.Popen(
        perf_analyzer(on, *CLOSED, str(2 * on.target.full), *TRUTH_MODE, "--measurement-interval", longer_ms),
        env=perf_analyzer_command.environment(layout.perf_analyzer_libraries()),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as child:  # fmt: skip
        try:
            time.sleep(WARM_S)
            start_ns = time.monotonic_ns()
            time.sleep(seconds)
            end_ns = time.monotonic_ns()
        finally:
            child.kill()
    return full_period_ms(executions_by_instance(on.logs, on.variant.name), max_batch, start_ns, end_ns)


def loadtest(on: Served) -> Saturation:
    """`brim loadtest` as users run it."""
    command = [sys.executable, "-m", "brim", "loadtest", on.variant.name, "--out", str(on.folder), "--json"]
    done = subprocess.run(
        command, cwd=layout.CHECKOUT, stdout=subprocess.PIPE, text=True, timeout=LOADTEST_LIMIT_S, check=False
    )
    try:
        run = json.loads(done.stdout)["results"][0]["run"]
    except (ValueError, LookupError):
        raise Lost(f"`brim loadtest` gave no answer (exit code {done.returncode})") from None
    return disk.load(Saturation, layout.run_folder(on.folder, run) / "saturation.json")


def _under_brim_ms(on: Served, server: Sleeper, run: Path, loads: Sequence[Load]) -> float | None:
    logs = executions_by_instance(on.logs, on.variant.name)
    figures = {load.index for load in loads if load.purpose == "figure"}
    windows = [w for w in disk.load_lines(Window, run / "windows.jsonl") if w.kind == "measured" and w.load in figures]
    try:
        return statistics.fmean(full_period_ms(logs, server.max_batch, w.start_ns, w.end_ns) for w in windows)
    except (Lost, statistics.StatisticsError):  # its batches were not full, or nothing was found to be a figure
        return None


def _point_s(on: Served, concurrency: int) -> float:
    """Seconds that perf_analyzer takes for one point, as it decides itself when it is stable."""
    start_s = time.monotonic()
    subprocess.run(
        perf_analyzer(on, *CLOSED, str(concurrency)),
        env=perf_analyzer_command.environment(layout.perf_analyzer_libraries()),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        timeout=POINT_LIMIT_S, check=False,
    )  # fmt: skip
    return time.monotonic() - start_s


def perf_analyzer(on: Served, *told: str) -> list[str]:
    """perf_analyzer on the server; it ends with this process, however that ends."""
    program = [
        *(str(layout.perf_analyzer()), "-m", on.target.model, "-u", guard.parse_url(on.target.url).netloc),
        *told,
    ]
    return supervise.command(program)


def table(found: Sequence[Found]) -> str:
    """A line for each server."""
    rows = [HEAD, *map(_row, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _row(one: Found) -> tuple[str, ...]:
    return (
        f"{one.server.service_ms:g},{one.server.max_batch},{one.server.instances}",
        f"{one.capacity:.2f}",
        _told(one.items_per_s, ".2f"),
        _told(one.off, "+.2%"),
        " ".join(f"{period_ms:.3f}" for period_ms in one.periods_ms),
        _told(one.period_under_brim_ms, ".3f"),
        _told(one.off_own, "+.2%"),
        one.verdict,
        _told(one.concurrency, "d"),
        f"{one.seconds_spent:.0f}",
        f"{one.ladder_seconds:.0f}",
        ",".join(map(str, one.points)) + ("" if one.held else "  MISSED"),
    )


def _told(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def main(arguments: Sequence[str]) -> int:
    """Every server in turn; what was found so far is printed as it comes."""
    names = [server.name for server in SLEEPERS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the JSON goes")
    parser.add_argument("--servers", nargs="+", choices=names, default=names)
    told = parser.parse_args(arguments)
    found: list[Found] = []
    for server in SLEEPERS:
        if server.name in told.servers:
            found.append(search(server))
            print(table(found[-1:]), flush=True)
    held = all(one.held for one in found)
    file = keep(told.out, "search", found)
    print(f"\n{table(found)}\n{'held' if held else 'MISSED'}: within {TOLERANCE:.0%}; kept in {file}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(outcome(main))
