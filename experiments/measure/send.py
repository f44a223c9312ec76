"""One step that sends: the load point as a spec, the load itself, and its line in every book of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from brim import disk
from brim.errors import Lost, NoResource, UsageError, WorkerLost
from brim.offspring import undisturbed
from brim.records import Load, LoadPoint, StatsRead, Window
from experiments.measure import alone, show, targets
from experiments.measure.bench import Bench
from experiments.measure.cut import enough_seconds, period_ns, windows_of
from experiments.measure.gathered import MeasuredLoad
from experiments.measure.steps import Done, Step, foreseen
from judging import windows as judged
from loadtest import prepared
from loadtest.driver import Driver, LoadSpec
from loadtest.load import Loaded, run_load
from loadtest.plan import FIGURE, LOAD_LIMIT_SECONDS, SEARCH
from loadtest.rows import read_rows


def send(bench: Bench, step: Step) -> None:
    """Send one load and book it. Lost if a sender of our own died: its share is missing from every figure."""
    driver = bench.other if step.purpose == "cross_check" else bench.own
    spec = spec_of(bench, step, driver)
    what = f"[{len(bench.done) + 1}] {bench.target.model}: {words(step)} ({spec.point.sender})"
    bench.say.progress(what)
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
            length=FIGURE if step.purpose == "figure" else SEARCH,
            suffices=suffices, progress=progress,
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


def words(step: Step) -> str:
    """`search, 16 in flight, 2 senders`."""
    senders = f", {step.senders} senders" if step.senders > 1 else ""
    return f"{step.purpose.replace('_', ' ')}, {step.concurrency} in flight{senders}"


def spec_of(bench: Bench, step: Step, driver: Driver) -> LoadSpec:
    """What the driver is told for this step."""
    request, plan = bench.request, bench.request.plan
    payloads = bench.payloads
    lighter = payloads.lighter if step.purpose == "transfer" else None
    payload = lighter or payloads.asked
    seconds = LOAD_LIMIT_SECONDS
    if driver.ends_itself:
        period_s = bench.period_s or 0.0
        seconds = enough_seconds(plan.window_for(period_s), period_s)
    return LoadSpec(
        url=bench.target.url,
        model=bench.target.model,
        version=bench.target.version,
        point=LoadPoint(
            concurrency=step.concurrency,
            items_per_request=request.items_per_request,
            protocol=bench.protocol,
            transport=payloads.lighter_transport if lighter else request.transport,
            payload=prepared.load(payload).source,
            sender=bench.sender if driver is bench.own else "perf_analyzer",
            senders=step.senders,
            compression=request.compression,
        ),
        payload=str(payload),
        folder=str(bench.folder / "raw" / f"{len(bench.loads):02d}-{driver.generator}"),
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
    )


def _book(bench: Bench, step: Step, spec: LoadSpec, loaded: Loaded, enough_ns: int | None) -> MeasuredLoad:
    bench.workers += max(len(loaded.load.workers), step.senders)
    load = replace(
        loaded.load,
        server_start=bench.start,
        request_bytes=prepared.load(Path(spec.payload)).request_bytes,
        judged_until_ns=enough_ns,
    )
    disk.append(bench.folder / "loads.jsonl", load)
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


def _judged(bench: Bench, loaded: Loaded) -> MeasuredLoad:
    """The load with its windows; a server whose counters went back was restarted, and the load says so."""
    load = loaded.load
    rows = judged.by_completion(read_rows(bench.folder, load.workers))
    windows: list[Window] = []
    restarted = ""
    try:
        windows = _cut(bench, rows, loaded.reads, load.generator, load.point, load.judged_until_ns)
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
    rows: judged.Rows,
    reads: Sequence[StatsRead],
    generator: judged.Generator,
    point: LoadPoint,
    until_ns: int | None = None,
) -> list[Window]:
    plan = bench.request.plan
    if len(rows):
        bench.period_s = period_ns(rows, reads) / 1e9
    return windows_of(
        rows, reads, generator=generator, point=point, min_seconds=plan.window_seconds,
        min_batches=plan.window_batches, max_seconds=plan.window_limit_seconds, until_ns=until_ns,
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
