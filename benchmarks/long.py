"""Whether a long run's memory grows: `python -m benchmarks.long [--out OUT] [--minutes N]`.

Brim's own load loop holds the null server at 64 requests in flight, at the full rate, with rows recorded; the resident
memory of the sender, of the measuring parent (this process) and of the server is sampled each second. Then the rows
are judged as any run's are: that costs what they weigh, and how much it is told. Writes OUT/bench/. Exit code 1 if
sender or parent grew by more than the record buffer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import psutil

from benchmarks.served import Served, keep, load_spec, outcome, served
from brim.errors import Lost
from brim.kserve import KServe
from brim.records import ROW, ServingConfig, Variant
from experiments.measure.cut import windows_of
from experiments.measure.run import exclusive
from judging.windows import by_completion
from loadtest.driver import LoadSpec, RunningLoad
from loadtest.load import Loaded, run_load
from loadtest.plan import FIGURE, LoadPlan, read_plan
from loadtest.rows import read_rows
from loadtest.sender_driver import SenderDriver
from loadtest.senders.tally import BUFFERED_ROWS
from loadtest.statistics_reader import StatisticsReader
from serve.known import known_server

CONCURRENCY = 64
SAMPLE_S = 1.0
#: What happens once (imports, allocators that warm up, caches of the kernel) is over by then.
SETTLED_S = 60.0
MB = 1e6
BUFFER_MB = BUFFERED_ROWS * ROW.size / MB

VARIANT = Variant(
    model=known_server("null", {}),
    config=ServingConfig(name="b64", engine="known", backend="python", max_batch=64),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident memory of one part over the run, in MB."""

    part: str
    settled_mb: float  # after the first minute (a tenth of a shorter run)
    most_mb: float
    slope_mb_per_minute: float  # of a line through the samples from there on
    grown_mb: float  # by that line, to the end of the run


@dataclass(frozen=True, slots=True, kw_only=True)
class Long:
    """What a long run took."""

    minutes: float
    requests: int
    requests_per_s: float
    buffer_mb: float  # the sender's buffer of rows, allocated at its start
    memory: tuple[Memory, ...]
    rows_mb: float  # what the rows weigh
    judging_mb: float  # what reading and judging them took at most, beyond what the parent had
    judging_s: float

    @property
    def held(self) -> bool:
        return all(one.grown_mb <= self.buffer_mb for one in self.memory if one.part != "server")


class Sampler(threading.Thread):
    """Looks at the resident memory of some processes until it is told to stop."""

    def __init__(self, pids: dict[str, int], every_s: float) -> None:
        super().__init__(daemon=True)
        self._processes = {part: psutil.Process(pid) for part, pid in pids.items()}
        self._every_s, self._over = every_s, threading.Event()
        self.times_s: list[float] = []
        self.resident_mb: dict[str, list[float]] = {part: [] for part in pids}

    def run(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                seen = {part: process.memory_info().rss / MB for part, process in self._processes.items()}
            except psutil.NoSuchProcess:  # the load has ended
                return
            self.times_s.append(time.monotonic())
            for part, resident in seen.items():
                self.resident_mb[part].append(resident)

    def stop(self) -> None:
        self._over.set()
        self.join()


class WatchedSender:
    """Brim's driver, with a sampler on what it starts."""

    generator: Literal["locust", "perf_analyzer", "loadgen"] = "locust"
    ends_itself = False

    def __init__(self, parent: int, server: int) -> None:
        self._others = {"parent": parent, "server": server}
        self.sampler: Sampler | None = None

    def start(self, spec: LoadSpec, folder: Path) -> RunningLoad:
        load = SenderDriver().start(spec, folder)
        self.sampler = Sampler({"sender": load.pids[0], **self._others}, SAMPLE_S)
        self.sampler.start()
        return load


def memory_of(part: str, times_s: Sequence[float], resident_mb: Sequence[float]) -> Memory:
    """How one part's memory went from when it had settled."""
    length_s = times_s[-1] - times_s[0]
    first = int(np.searchsorted(times_s, times_s[0] + min(SETTLED_S, length_s / 10)))
    slope = float(np.polyfit(times_s[first:], resident_mb[first:], 1)[0])
    return Memory(
        part=part,
        settled_mb=resident_mb[first],
        most_mb=max(resident_mb),
        slope_mb_per_minute=60 * slope,
        grown_mb=slope * (times_s[-1] - times_s[first]),
    )


def measure(minutes: float) -> Long:
    """One load of so many minutes, and its judgement."""
    plan = read_plan(None)
    with (
        tempfile.TemporaryDirectory(prefix="brim-bench-") as place,
        served(VARIANT, Path(place), models=Path(place)) as on,
    ):
        spec = load_spec(on, CONCURRENCY, seconds=60 * minutes)
        loaded, sampler = _load(on, spec, plan)
        before_mb = psutil.Process().memory_info().rss / MB
        Path("/proc/self/clear_refs").write_text("5")  # the most that was resident counts anew from here
        start_s = time.monotonic()
        rows = by_completion(read_rows(Path(spec.rows).parent, loaded.load.workers))
        windows_of(
            rows, loaded.reads, generator="locust", point=spec.point, min_seconds=plan.window_seconds,
            min_batches=plan.window_batches, max_seconds=plan.window_limit_seconds,
        )  # fmt: skip
        judging_s = time.monotonic() - start_s
        return Long(
            minutes=minutes,
            requests=loaded.load.ok,
            requests_per_s=loaded.load.ok / (loaded.load.end_ns - loaded.load.start_ns) * 1e9,
            buffer_mb=BUFFER_MB,
            memory=tuple(memory_of(part, sampler.times_s, mb) for part, mb in sampler.resident_mb.items()),
            rows_mb=len(rows) * ROW.size / MB,
            judging_mb=_most_mb() - before_mb,
            judging_s=judging_s,
        )


def _most_mb() -> float:
    """The most memory that was resident in this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / MB


def _load(on: Served, spec: LoadSpec, plan: LoadPlan) -> tuple[Loaded, Sampler]:
    assert on.server.pid is not None  # it is embedded
    driver = WatchedSender(psutil.Process().pid, on.server.pid)
    reader = StatisticsReader(KServe(on.target.url), on.target, on.server.pid)
    loaded = run_load(
        driver, spec, plan, reader, index=0, purpose="figure", length=FIGURE,
        suffices=lambda reads: False,  # it goes on until spec.seconds
        progress=lambda elapsed_s, wanted_s: None,
    )  # fmt: skip
    assert driver.sampler is not None  # the load was started
    driver.sampler.stop()
    if loaded.load.ok < loaded.load.sent:
        raise Lost(f"the load was no good: {loaded.load.ended} {loaded.load.reasons} {dict(loaded.load.errors)}")
    return loaded, driver.sampler


def report(long: Long) -> str:
    """A line for each part."""
    lines = [
        f"{long.requests:,} requests in {long.minutes:g} minutes, {long.requests_per_s:,.0f}/s; "
        f"record buffer {long.buffer_mb:.1f} MB",
        *(
            f"  {m.part:<7} {m.settled_mb:8.1f} MB settled, most {m.most_mb:8.1f} MB, "
            f"{m.slope_mb_per_minute:+.3f} MB a minute, {m.grown_mb:+.2f} MB in all"
            for m in long.memory
        ),
        f"  judging {long.rows_mb:.0f} MB of rows took {long.judging_mb:.0f} MB more and {long.judging_s:.1f} s",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """One long run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the JSON goes")
    parser.add_argument("--minutes", type=float, default=10.0)
    told = parser.parse_args(arguments)
    with exclusive():
        long = measure(told.minutes)
    print(f"{report(long)}\n{'held' if long.held else 'MISSED'}; kept in {keep(told.out, 'long', long)}")
    return 0 if long.held else 1


if __name__ == "__main__":
    sys.exit(outcome(main))
