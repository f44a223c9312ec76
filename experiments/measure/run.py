"""The shell of a measurement: ask for the next step, act, record; then judge what was recorded.

Writes out/runs/<run>/; whatever ends it (a signal, a lost server, a full disk), children have ended, rows are closed
and what was measured is kept.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from brim import disk, environment, layout
from brim.errors import BrimError, Interrupted, Lost, NoResource
from brim.kserve import KServe
from brim.records import LoadPoint, Run, Saturation, StatsRead, Target, TargetLimit, Window
from brim.say import Say
from experiments.measure import alone, ledger, show, targets
from experiments.measure.answer import Alone, Evidence, MeasuredLoad, answer
from experiments.measure.steps import FIGURE_LOADS, Done, Plan, Purpose, Step, next_step
from judging import windows as judged
from judging.steady import steady
from loadtest import payload, prepared
from loadtest.driver import Driver, LoadSpec
from loadtest.load import Loaded, run_load
from loadtest.locust_driver import LocustDriver
from loadtest.perf_analyzer_driver import PerfAnalyzerDriver, available
from loadtest.plan import LOAD_LIMIT_SECONDS, LoadPlan
from loadtest.rows import read_rows
from loadtest.statistics_reader import StatisticsReader

#: perf_analyzer decides its length beforehand: a window, and this much for warm-up and the reads at both ends.
CROSS_CHECK_SLACK = 1.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for, the same for every target of one command."""

    plan: LoadPlan
    batch_id: str
    allowed: Mapping[str, TargetLimit]
    concurrency: int | None
    senders: int
    items_per_request: int
    input_data: str | None
    cross_check: bool
    figure_loads: int = FIGURE_LOADS


@dataclass(slots=True, kw_only=True)
class _Bench:
    """What one measurement has at hand, and what has come of it so far."""

    run: Run
    folder: Path
    target: Target
    request: Request
    say: Say
    reader: StatisticsReader
    payload: Path
    drivers: Mapping[Purpose, Driver]
    no_cross_check: str | None  # why the other generator cannot run
    loads: list[MeasuredLoad] = field(default_factory=list)
    workers: int = 0
    period_s: float | None = None  # from batch to batch, as last seen


def measure(target: Target, request: Request, *, out: Path, say: Say) -> Saturation:
    """Measure one target from the first request to saturation.json; locks keep other measurements away."""
    with contextlib.ExitStack() as held:
        busy = "another brim is measuring on this machine; wait for it (two measurements measure each other)"
        held.enter_context(disk.lock(ledger.machine_lock(), busy))
        if target.server is not None:
            of_server = layout.server_folder(out, target.server.id) / "lock"
            held.enter_context(disk.lock(of_server, f"the server {target.server.id} is being measured; wait for it"))
        started = time.monotonic()
        run = ledger.open_run(out, target, request.batch_id)
        try:
            bench = _prepare(run, target, request, out, say)
            evidence = _gather(bench)
            saturation = answer(evidence, seconds_spent=time.monotonic() - started)
            disk.save(bench.folder / "saturation.json", saturation)
        finally:
            ledger.close_run(out, run)
    if evidence.interrupted is not None:
        raise evidence.interrupted
    return saturation


def _prepare(run: Run, target: Target, request: Request, out: Path, say: Say) -> _Bench:
    folder = layout.run_folder(out, run.id)
    pool = payload.prepare(
        target, folder / "raw" / "payload", items_per_request=request.items_per_request,
        input_data=request.input_data, seed=request.plan.seed, pool=request.plan.inputs,
    )  # fmt: skip
    locust = LocustDriver()
    missing = available() if request.cross_check else "switched off with --no-cross-check"
    if missing is not None:
        say.warn(f"no cross-check: {missing}")
    return _Bench(
        run=run, folder=folder, target=target, request=request, say=say, payload=pool,
        reader=StatisticsReader(KServe(target.url, request.allowed), target, targets.server_pid(target)),
        drivers={"search": locust, "one_more_sender": locust, "figure": locust, "cross_check": PerfAnalyzerDriver()},
        no_cross_check=missing,
    )  # fmt: skip


def _gather(bench: _Bench) -> Evidence:
    """Every load that the plan asks for, then the engine alone; a signal ends it early but loses nothing."""
    request, target = bench.request, bench.target
    plan = Plan(
        full=max(1, target.full // request.items_per_request),
        concurrency=request.concurrency,
        senders=request.senders,
        max_senders=max(request.senders, min(request.plan.max_senders, environment.usable_cores() + 1)),
        rounds=request.plan.rounds,
        cross_check=bench.no_cross_check is None,
        figure_loads=request.figure_loads,
    )
    interrupted: Interrupted | None = None
    done: list[Done] = []
    beside = Alone()
    try:
        while (step := next_step(plan, done)) is not None:
            measured = _measure_load(bench, step)
            done.append(Done(step=step, items_per_s=measured.items_per_s))
            if measured.interrupted is not None:
                raise measured.interrupted
        if not any(load.lost for load in bench.loads):
            beside = _alone(bench)
    except Interrupted as stopped:
        interrupted = stopped
    return Evidence(
        run=bench.run, target=target, plan=plan, done=tuple(done), loads=tuple(bench.loads), alone=beside,
        items_per_request=request.items_per_request, payload=prepared.load(bench.payload).source,
        no_cross_check=bench.no_cross_check, interrupted=interrupted,
        lost=targets.lost_reason(target) if any(load.lost for load in bench.loads) else None,
    )  # fmt: skip


def _measure_load(bench: _Bench, step: Step) -> MeasuredLoad:
    driver = bench.drivers[step.purpose]
    spec = _spec(bench, step, driver)
    index = len(bench.loads)
    _announce(bench, step, spec)
    words = f"[{index + 1}] {bench.target.model}: {step.purpose.replace('_', ' ')}, {step.concurrency} in flight"
    words += f", {step.senders} senders" if step.senders > 1 else ""
    bench.say.progress(f"{words} ({driver.generator})")

    def progress(elapsed_s: float, wanted_s: float) -> None:
        bench.say.detail(f"    {elapsed_s:.0f} s of at least {wanted_s:.0f} s")

    def suffices(reads: Sequence[StatsRead]) -> bool:
        workers = range(spec.first_worker, spec.first_worker + step.senders)
        rows = judged.by_completion(read_rows(bench.folder, workers))
        windows = _cut(bench, rows, reads, driver.generator, spec.point)
        return any(w.kind == "measured" and not w.unstable for w in windows)

    loaded = run_load(
        driver, spec, bench.request.plan, bench.reader, index=index, purpose=step.purpose, suffices=suffices,
        progress=progress,
    )  # fmt: skip
    if loaded.no_room:
        raise NoResource(loaded.load.reasons[0])
    bench.workers += len(loaded.load.workers)
    disk.append(bench.folder / "loads.jsonl", loaded.load)
    measured = _judged(bench, loaded)
    for window in measured.windows:
        disk.append(bench.folder / "windows.jsonl", window)
    bench.loads.append(measured)
    rate = f"{show.number(measured.items_per_s)} {bench.target.item}s/s" if measured.items_per_s else "no window"
    bench.say.progress(f"    {rate}{'; ' + '; '.join(measured.reasons) if measured.reasons else ''}")
    return measured


def _spec(bench: _Bench, step: Step, driver: Driver) -> LoadSpec:
    request, plan = bench.request, bench.request.plan
    folder = bench.folder / "raw" / f"{len(bench.loads):02d}-{driver.generator}"
    seconds = LOAD_LIMIT_SECONDS
    if driver.ends_itself:
        seconds = CROSS_CHECK_SLACK * plan.window_for(bench.period_s or 0.0) + 1.0
    return LoadSpec(
        url=bench.target.url,
        model=bench.target.model,
        version=bench.target.version,
        point=LoadPoint(
            concurrency=step.concurrency,
            items_per_request=request.items_per_request,
            payload=prepared.load(bench.payload).source,
            sender="locust_http" if driver.generator == "locust" else "perf_analyzer_http",
            senders=step.senders,
        ),
        payload=str(bench.payload),
        folder=str(folder),
        rows=str(bench.folder / "requests"),
        first_worker=bench.workers,
        seconds=seconds,
        timeout_s=plan.request_timeout_seconds,
        drain_s=plan.drain_seconds,
        samples=plan.samples,
        allowed=request.allowed,
    )


def _announce(bench: _Bench, step: Step, spec: LoadSpec) -> None:
    """Once, before anything is sent to a host that is not this machine."""
    host = KServe(bench.target.url, bench.request.allowed).endpoint.host
    limit = bench.request.allowed.get(host)
    if limit is not None and not bench.loads:
        bench.say.warn(show.announcement(bench.target, limit, 2 * step.concurrency, 12 * spec.seconds))


def _judged(bench: _Bench, loaded: Loaded) -> MeasuredLoad:
    """The load with its windows; a server whose counters went back was restarted, and the load says so."""
    load = loaded.load
    rows = judged.by_completion(read_rows(bench.folder, load.workers))
    windows: list[Window] = []
    restarted = ""
    try:
        windows = _cut(bench, rows, loaded.reads, load.generator, load.point)
    except Lost as error:
        restarted = str(error)
    return MeasuredLoad(
        load=load,
        windows=tuple(windows),
        rows=rows,
        period_ns=_period_ns(rows, loaded.reads),
        kept=alone.Kept(folder=loaded.folder, samples=loaded.samples),
        reads=loaded.reads,
        interrupted=loaded.interrupted,
        restarted=restarted,
    )


def _period_ns(rows: judged.Rows, reads: Sequence[StatsRead]) -> int:
    sent_ns = rows["sent_ns"]
    if not len(rows):
        return 1
    return judged.batch_period_ns(reads, rows, from_ns=int(sent_ns.min()), until_ns=int(sent_ns.max()))


def _cut(
    bench: _Bench, rows: judged.Rows, reads: Sequence[StatsRead], generator: judged.Generator, point: LoadPoint
) -> list[Window]:
    """The windows in a load's rows, from where it is steady to where sending stopped."""
    done_ns, items = judged.answered(rows)
    if not len(done_ns):
        return []
    plan, period_ns = bench.request.plan, _period_ns(rows, reads)
    bench.period_s = period_ns / 1e9
    start_ns, until_ns = int(rows["sent_ns"].min()), int(rows["sent_ns"].max())
    state = steady(done_ns, items, start_ns=start_ns, end_ns=until_ns, period_ns=period_ns)
    return judged.cut_windows(
        rows, reads, generator=generator, point=point, steady=state, until_ns=until_ns, period_ns=period_ns,
        min_seconds=plan.window_seconds, min_batches=plan.window_batches, max_seconds=plan.window_limit_seconds,
    )  # fmt: skip


def _alone(bench: _Bench) -> Alone:
    """The engine alone, now that the server is idle; a failure here is a broken check, not the end of the run."""
    variant, model = bench.target.variant, targets.engine_file(bench.target)
    if variant is None or model is None:
        return Alone(reason="a known server has no engine" if variant else "not served by Brim: its engine is not here")
    figures = [w for load in bench.loads if load.load.purpose == "figure" for w in load.measured if w.server]
    if not figures:
        return Alone(reason="no window to compare with")
    sizes = [w.server.effective_batch for w in figures if w.server is not None and w.server.effective_batch]
    batch = max(1, round(statistics.median(sizes))) if sizes else 1
    kept = [load.kept for load in bench.loads if load.load.purpose == "figure"]
    bench.say.progress(f"    the same engine alone, batch {batch}, {variant.config.threads} thread(s)")
    folder = bench.folder / "raw"
    try:
        rate = alone.ceiling(variant, model, batch, folder / "ceiling")
        values = alone.compare_values(bench.target, variant, model, bench.payload, kept, folder / "values")
    except BrimError as error:
        return Alone(reason=str(error), failed=True)
    return Alone(items_per_s=rate, batch=batch, values=values)
