"""One step that sends: the load point as a spec, the load itself, and its line in every book of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from brim import disk
from brim.errors import Lost, NoResource, UsageError, WorkerLost
from brim.offspring import undisturbed
from brim.records import Load, LoadPoint, Sender, StatsRead, Window
from experiments.measure import alone, show, targets
from experiments.measure.bench import Bench
from experiments.measure.cut import enough_seconds, period_ns, windows_of
from experiments.measure.experiment import Done, Step
from experiments.measure.gathered import MeasuredLoad
from experiments.measure.request import Offsets, OpenLoop
from experiments.measure.steps import foreseen
from judging import windows as judged
from judging.rows import Rows
from loadtest import prepared
from loadtest.driver import Driver, LoadSpec
from loadtest.load import Loaded, run_load
from loadtest.plan import FIGURE, LOAD_LIMIT_SECONDS, SEARCH
from loadtest.rows import read_rows

#: The arrivals of an open loop, in the load's folder: int64 ns from its start.
SCHEDULE = "schedule.npy"


def send(bench: Bench, step: Step) -> None:
    """Send one load and book it. Lost if a sender of our own died: its share is missing from every figure."""
    driver = bench.other if step.purpose == "cross_check" else bench.own
    spec = spec_of(bench, step, driver)
    what = f"[{len(bench.done) + 1}] {bench.target.model}: {words(step, spec.point)} ({spec.point.sender})"
    bench.say.progress(what)
    is_open = spec.point.mode == "open"  # lasts as long as it was asked to
    further = len(foreseen(bench.plan, bench.done)) - 1

    def progress(elapsed_s: float, wanted_s: float) -> None:
        bench.say.detail(f"    {elapsed_s:.0f} s of at least {wanted_s:.0f} s")
        bench.progress.stepping(what, wanted_s, further)

    enough_ns: int | None = None

    def suffices(reads: Sequence[StatsRead]) -> bool:
        nonlocal enough_ns
        rows = judged.by_completion(read_rows(bench.folder, range(bench.workers, bench.workers + step.senders)))
        try:
            windows = _cut(bench, rows, reads, driver.generator, spec.point)
        except Lost:  # the counters went back: the load is over, and is judged below
            return True
        steadily = step.purpose == "figure"  # the search compares at equal engine speed: a window is enough
        enough = any(w.kind == "measured" and not (steadily and w.unstable) for w in windows)
        # The record is judged as far as it was when it was found long enough: a second more could move the cut again.
        enough_ns = int(rows["sent_ns"].max()) if enough else None
        return enough

    bench.payloads.ensure_registered()
    try:
        loaded = run_load(
            driver, spec, bench.request.plan, bench.reader, index=len(bench.loads), purpose=step.purpose,
            length=None if is_open else FIGURE if step.purpose == "figure" else SEARCH,
            suffices=None if is_open else suffices, progress=progress,
        )  # fmt: skip
    except UsageError as error:
        if step.purpose != "cross_check":
            raise
        # perf_analyzer cannot send this load: that is no fault of the target, and costs rule 5 only.
        bench.no_cross_check, bench.plan = str(error), replace(bench.plan, cross_check=False)
        bench.say.warn(f"no cross-check: {error}")
        return
    with undisturbed():
        measured = _book(bench, step, spec, loaded, enough_ns)
    rate = bench.done[-1].items_per_s
    told = [f"{show.number(rate)} {bench.target.item}s/s" if rate else "no window", *measured.reasons]
    bench.say.progress(f"    {'; '.join(told)}")
    _raise_what_ended(bench, loaded, measured)


def words(step: Step, point: LoadPoint) -> str:
    """`search, 16 in flight, 2 senders`, or `figure, 300/s poisson`."""
    senders = f", {step.senders} senders" if step.senders > 1 else ""
    what = f"{step.concurrency} in flight" if point.mode == "closed" else f"{point.rate_per_s:.4g}/s {point.arrivals}"
    return f"{step.purpose.replace('_', ' ')}, {what}{senders}"


def spec_of(bench: Bench, step: Step, driver: Driver) -> LoadSpec:
    """What the driver is told for this step."""
    payloads, plan = bench.payloads, bench.request.plan
    lighter = payloads.lighter if step.purpose == "transfer" else None
    point = point_of(
        bench, bench.sender if driver is bench.own else "perf_analyzer", lighter, concurrency=step.concurrency,
        senders=step.senders,
    )  # fmt: skip
    asked = bench.request.open_loop
    if asked is not None:
        return load_spec(bench, opened(point, asked), seconds=asked.seconds, offsets_ns=asked.offsets_ns)
    seconds = LOAD_LIMIT_SECONDS
    if driver.ends_itself:
        period_s = bench.period_s or 0.0
        seconds = enough_seconds(plan.window_for(period_s), period_s)
    return load_spec(bench, point, seconds=seconds, payload=lighter, generator=driver.generator)


def point_of(
    bench: Bench, sender: Sender, lighter: Path | None = None, *, concurrency: int, senders: int = 1
) -> LoadPoint:
    """So many requests in flight, as the user wants them sent; `lighter` is another pool than the one asked for."""
    request, payloads = bench.request, bench.payloads
    return LoadPoint(
        concurrency=concurrency,
        items_per_request=request.items_per_request,
        protocol=bench.protocol,
        transport=payloads.lighter_transport if lighter else request.transport,
        payload=prepared.load(lighter or payloads.asked).source,
        sender=sender,
        senders=senders,
        compression=request.compression,
    )


def opened(point: LoadPoint, asked: OpenLoop) -> LoadPoint:
    """The same at a rate."""
    return replace(
        point, mode="open", concurrency=None, rate_per_s=asked.rate_per_s, arrivals=asked.arrivals, cv=asked.cv,
        seed=asked.seed, outstanding=asked.outstanding,
    )  # fmt: skip


def load_spec(
    bench: Bench,
    point: LoadPoint,
    *,
    seconds: float,
    payload: Path | None = None,
    generator: str = "locust",
    offsets_ns: Offsets | None = None,
) -> LoadSpec:
    """The next load of the run as its driver is told it; the schedule of an open loop is written beside it."""
    request, plan = bench.request, bench.request.plan
    folder = bench.folder / "raw" / f"{len(bench.loads):02d}-{generator}"
    return LoadSpec(
        url=bench.target.url,
        model=bench.target.model,
        version=bench.target.version,
        point=point,
        payload=str(payload or bench.payloads.asked),
        folder=str(folder),
        rows=str(bench.folder / "requests"),
        first_worker=bench.workers,
        seconds=seconds,
        timeout_s=plan.request_timeout_seconds,
        drain_s=plan.longest_drain_s,
        samples=plan.samples,
        allowed=request.allowed,
        cpus=targets.sender_cpus(bench.target),
        access=request.access,
        channels=request.channels,
        arrivals=None if offsets_ns is None else str(_scheduled(folder, offsets_ns)),
    )


def _scheduled(folder: Path, offsets_ns: Offsets) -> Path:
    file = disk.make_folder(folder) / SCHEDULE
    with disk.told(file):
        np.save(file, offsets_ns, allow_pickle=False)
    return file


def _book(bench: Bench, step: Step, spec: LoadSpec, loaded: Loaded, enough_ns: int | None) -> MeasuredLoad:
    load = take_down(bench, spec, loaded, enough_ns)
    measured = _judged(bench, replace(loaded, load=load))
    for window in measured.windows:
        disk.append(bench.folder / "windows.jsonl", window)
    bench.loads.append(measured)
    bench.done.append(
        Done(
            step=step,
            rates=() if loaded.load.ended == "crashed" else measured.rates,
            busy_s_per_item=measured.busy_s_per_item,
            effective_batch=measured.effective_batch,
            busy_share=measured.busy_share(bench.target),
        )
    )
    return measured


def take_down(bench: Bench, spec: LoadSpec, loaded: Loaded, enough_ns: int | None = None) -> Load:
    """The load's line in loads.jsonl; its workers' numbers are used up."""
    bench.workers += max(len(loaded.load.workers), spec.point.senders)
    load = replace(
        loaded.load,
        server_start=bench.start,
        request_bytes=prepared.load(Path(spec.payload)).request_bytes,
        judged_until_ns=enough_ns,
        schedule=str(Path(spec.arrivals).relative_to(bench.folder)) if spec.arrivals else None,
    )
    disk.append(bench.folder / "loads.jsonl", load)
    return load


def _judged(bench: Bench, loaded: Loaded) -> MeasuredLoad:
    """The load with its windows; a server whose counters went back was restarted, and the load says so."""
    load = loaded.load
    rows = judged.by_completion(read_rows(bench.folder, load.workers))
    windows: list[Window] = []
    restarted = ""
    try:
        windows = _cut(bench, rows, loaded.reads, load.generator, load.point, load.judged_until_ns, load.unsent)
    except Lost as error:
        restarted = str(error)
    return MeasuredLoad(
        load=load,
        windows=tuple(_of_hosts(replace(window, load=load.index), load) for window in windows),
        rows=rows,
        period_ns=period_ns(rows, loaded.reads),
        kept=alone.Kept(folder=loaded.folder, samples=loaded.samples),
        reads=loaded.reads,
        restarted=restarted,
    )


def _of_hosts(window: Window, load: Load) -> Window:
    """Where other hosts sent: their processor time, and the busiest host's cores if they had less room than ours."""
    if load.hosts_busy is None or window.cpu is None or load.end_ns <= load.start_ns:
        return window
    spent_s = load.client_cpu_s * window.seconds * 1e9 / (load.end_ns - load.start_ns)
    busiest = max(load.hosts_busy, window.cpu.machine_share or 0.0)
    return replace(window, cpu=replace(window.cpu, client_s=spent_s, machine_share=busiest))


def _cut(
    bench: Bench,
    rows: Rows,
    reads: Sequence[StatsRead],
    generator: judged.Generator,
    point: LoadPoint,
    until_ns: int | None = None,
    unsent: int = 0,
) -> list[Window]:
    plan = bench.request.plan
    if len(rows):
        bench.period_s = period_ns(rows, reads) / 1e9
    return windows_of(
        rows, reads, generator=generator, point=point, min_seconds=plan.window_seconds,
        min_batches=plan.window_batches, max_seconds=plan.window_limit_seconds, until_ns=until_ns,
        unsent=unsent,
    )  # fmt: skip


def _raise_what_ended(bench: Bench, loaded: Loaded, measured: MeasuredLoad) -> None:
    said = next(iter((*loaded.load.reasons, *loaded.load.errors)), "")
    if loaded.no_room:
        raise NoResource(said or f"{bench.folder}: no room left; free some, or point --out elsewhere")
    if loaded.interrupted is not None:
        raise loaded.interrupted
    if measured.lost:
        bench.lost = targets.lost_reason(bench.target, bench.control) or measured.restarted or said
    elif loaded.load.ended == "crashed" and loaded.load.purpose not in ("cross_check", "transfer"):
        raise WorkerLost(f"{said or 'a sender process ended'}; what was measured is in {bench.folder}")
