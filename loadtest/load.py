"""One load: start a driver, read the server's statistics beside it, end it when its record is long enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from brim import disk
from brim.errors import Interrupted, NotReady
from brim.records import Load, StatsRead
from loadtest.driver import Driver, LoadResult, LoadSpec, RunningLoad, Sample
from loadtest.plan import Length, LoadPlan
from loadtest.statistics_reader import INTERVAL_S, StatisticsReader

#: Reads that fail in a row before the server counts as lost: one may fall into a busy moment.
LOST_AFTER = 3
#: Between two reads so many looks whether the load still runs.
LOOKS = 10
#: A first estimate of the batch period needs this many batches.
PERIOD_BATCHES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A load that has ended: its line for loads.jsonl, the reads beside it and the responses it kept."""

    load: Load
    reads: tuple[StatsRead, ...]
    samples: tuple[Sample, ...]
    folder: Path
    interrupted: Interrupted | None = None  # the signal that ended it early, for the caller to raise again
    no_room: bool = False  # the disk was full


def batch_period_s(reads: Sequence[StatsRead]) -> float | None:
    """Seconds from batch to batch in the newer half of the reads, or None while too few batches have ended."""
    recent = reads[len(reads) // 2 :]
    if len(recent) < 2:
        return None
    batches = recent[-1].batches - recent[0].batches
    if batches < PERIOD_BATCHES:
        return None
    return (recent[-1].middle_ns - recent[0].middle_ns) / 1e9 / batches


def run_load(
    driver: Driver,
    spec: LoadSpec,
    plan: LoadPlan,
    reader: StatisticsReader,
    *,
    index: int,
    purpose: str,
    length: Length | None,
    suffices: Callable[[Sequence[StatsRead]], bool] | None,
    progress: Callable[[float, float], None],
    pause: Callable[[float], None] = time.sleep,
) -> Loaded:
    """Send one load point and give what came of it; a lost server or a dead child is an outcome, not an exception.

    The driver is stopped as soon as the record is as long as `length` asks for and `suffices` says that it
    holds what it was made for (spec.seconds bounds it); without them it lasts for spec.seconds. Whatever ends
    this function, the children have ended before it returns.
    """
    folder = Path(spec.folder)
    disk.save(folder / "spec.json", spec)
    reads = [reader.read()]
    running = driver.start(spec, folder)
    lost, interrupted = False, None
    try:
        reader.watch_clients(running.pids)
        enough = None if driver.ends_itself else suffices
        lost = _watch(running, plan, length, reader, reads, spec.seconds, enough, progress, pause)
    except Interrupted as stopped:
        interrupted = stopped
    except BaseException:
        _end(running, stop=True)
        raise
    result, stopped_late = _end(running, stop=interrupted is not None or not driver.ends_itself or lost)
    if not lost:
        _last_read(reader, reads)
    for read in reads:
        disk.append(folder / "reads.jsonl", read)
    load = _load(result, spec, driver, index, purpose, lost)
    return Loaded(
        load=load, reads=tuple(reads), samples=result.samples, folder=folder,
        interrupted=interrupted or stopped_late, no_room=result.no_room,
    )  # fmt: skip


def _end(running: RunningLoad, *, stop: bool) -> tuple[LoadResult, Interrupted | None]:
    """Its result, whatever comes; a first signal meanwhile stops it, and a second one ends this process."""
    interrupted: Interrupted | None = None
    while True:
        try:
            if stop or interrupted is not None:
                running.stop()
            return running.finish(), interrupted
        except Interrupted as signalled:
            interrupted = signalled


def _watch(
    running: RunningLoad,
    plan: LoadPlan,
    length: Length | None,
    reader: StatisticsReader,
    reads: list[StatsRead],
    limit_s: float,
    suffices: Callable[[Sequence[StatsRead]], bool] | None,
    progress: Callable[[float, float], None],
    pause: Callable[[float], None],
) -> bool:
    """Read until the record is long enough or the driver has ended; True if the server stopped answering.

    `suffices` is None for a driver that ends by itself.
    """
    start_ns, failures, longer_s = time.monotonic_ns(), 0, 0.0
    while _still_running(running, pause):
        try:
            reads.append(reader.read())
            failures = 0
        except NotReady:
            failures += 1
            if failures >= LOST_AFTER:
                return True
        elapsed_s = (time.monotonic_ns() - start_ns) / 1e9
        period_s = batch_period_s([r for r in reads if r.before_ns > start_ns])
        wanted_s = min(plan.record_for(period_s, length) + longer_s, limit_s) if period_s and length else limit_s
        progress(elapsed_s, wanted_s)
        if suffices is not None and length is not None and elapsed_s >= wanted_s:
            if elapsed_s >= limit_s or suffices(reads):
                return False
            longer_s += length.longer_s
    return False


def _still_running(running: RunningLoad, pause: Callable[[float], None]) -> bool:
    """Whether it runs on for the seconds between two reads; if not, none of the rest of them is waited for."""
    for _ in range(LOOKS):
        if not running.running():
            return False
        pause(INTERVAL_S / LOOKS)
    return True


def _last_read(reader: StatisticsReader, reads: list[StatsRead]) -> None:
    try:
        reads.append(reader.read())
    except NotReady:
        return


def _load(result: LoadResult, spec: LoadSpec, driver: Driver, index: int, purpose: str, lost: bool) -> Load:
    return Load(
        index=index,
        generator=driver.generator,
        purpose=purpose,  # type: ignore[arg-type]  # the plan's words are Load's
        point=spec.point,
        workers=result.workers,
        start_ns=result.start_ns,
        end_ns=result.end_ns,
        sent=result.sent,
        ok=result.ok,
        rejected=result.rejected,
        timed_out=result.timed_out,
        failed=result.failed,
        cancelled=result.cancelled,
        items_ok=result.items_ok,
        client_cpu_s=result.client_cpu_s,
        ended="server_lost" if lost else result.ended,
        errors=result.errors,
        reasons=(result.reason,) if result.reason else (),
        hosts_busy=result.hosts_busy,
        unsent=result.unsent,
    )
