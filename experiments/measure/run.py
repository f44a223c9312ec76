"""The shell of a measurement: ask for the next step, act, record; then judge what was recorded.

Writes out/runs/<run>/; whatever ends it (a signal, a lost server, a full disk), children have ended, rows are closed
and what was measured is kept.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from brim import disk, environment, layout
from brim.errors import BrimError, Interrupted, Lost, NoResource, NotReady, UsageError
from brim.kserve import KServe
from brim.offspring import undisturbed
from brim.records import LoadPoint, Run, Saturation, Sender, StatsRead, Target, TargetLimit, Window
from brim.say import Say
from experiments.measure import alone, ledger, show, targets
from experiments.measure.answer import Alone, Evidence, MeasuredLoad, agree_within, answer
from experiments.measure.cut import period_ns, windows_of
from experiments.measure.steps import FIGURE_ROUNDS, Done, Plan, Purpose, Step, next_step
from judging import windows as judged
from loadtest import payload, prepared
from loadtest.driver import Driver, LoadSpec
from loadtest.load import Loaded, run_load
from loadtest.perf_analyzer_driver import PerfAnalyzerDriver, available
from loadtest.plan import BINS, LOAD_LIMIT_SECONDS, SEARCH_BINS, LoadPlan
from loadtest.rows import read_rows
from loadtest.sender_driver import SenderDriver
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
    figure_rounds: int = FIGURE_ROUNDS
    sender: Sender = "locust_http"

    @property
    def max_senders(self) -> int:
        """Where the one-more-sender experiment ends: one beyond the cores at most, and always one more than asked."""
        return max(self.senders + 1, min(self.plan.max_senders, environment.usable_cores() + 1))


@dataclass(slots=True, kw_only=True)
class _Bench:
    """What one measurement has at hand, and what has come of it so far."""

    run: Run
    folder: Path
    target: Target
    request: Request
    say: Say
    plan: Plan
    reader: StatisticsReader
    payload: Path
    drivers: Mapping[Purpose, Driver]
    no_cross_check: str | None  # why the other generator cannot run
    alone: Alone
    loads: list[MeasuredLoad] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)
    workers: int = 0
    period_s: float | None = None  # from batch to batch, as last seen
    interrupted: Interrupted | None = None
    lost: str | None = None


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Keep other measurements away from this machine: two measurements measure each other."""
    with disk.lock(ledger.machine_lock(), "another brim is measuring on this machine; wait for it"):
        yield


def measure(target: Target, request: Request, *, out: Path, say: Say) -> tuple[Saturation, Interrupted | None]:
    """Measure one target from the first request to saturation.json; call it inside `exclusive`.

    A signal ends it early: its answer then says `aborted` and the signal is given beside it, to be raised again.
    """
    _refuse(target, request)
    with contextlib.ExitStack() as held:
        if target.server is not None:
            of_server = layout.server_folder(out, target.server.id) / "lock"
            held.enter_context(disk.lock(of_server, f"the server {target.server.id} is being measured; wait for it"))
        started = time.monotonic()
        run = ledger.open_run(out, target, request.batch_id)
        try:
            bench = _prepare(run, target, request, out, say)
            _gather(bench)
            with undisturbed():
                saturation = answer(_evidence(bench), seconds_spent=time.monotonic() - started)
                disk.save(bench.folder / "saturation.json", saturation)
        finally:
            with undisturbed():
                ledger.close_run(out, run)
    return saturation, bench.interrupted


def _refuse(target: Target, request: Request) -> None:
    """What cannot be loaded as asked, told before a run is opened."""
    payload.check_items(target, request.items_per_request)
    requests = request.concurrency or _full(target, request)
    if request.senders > requests:
        raise UsageError(f"--senders {request.senders}: only {requests} requests are in flight; ask for fewer senders")


def _full(target: Target, request: Request) -> int:
    """Requests that hold 2 x max_batch x instances items."""
    return max(1, -(-target.full // request.items_per_request))


def _prepare(run: Run, target: Target, request: Request, out: Path, say: Say) -> _Bench:
    folder = layout.run_folder(out, run.id)
    pool = payload.prepare(
        target, folder / "raw" / "payload", items_per_request=request.items_per_request,
        input_data=request.input_data, seed=request.plan.seed, pool=request.plan.inputs,
    )  # fmt: skip
    missing = _no_cross_check(target, request)
    if missing is not None and request.cross_check:
        say.warn(f"no cross-check: {missing}")
    locust = SenderDriver()
    engine = targets.engine_file(target)
    reason = "a known server has no engine" if target.variant else "not served by Brim: its engine is not here"
    plan = Plan(
        full=_full(target, request),
        concurrency=request.concurrency,
        senders=request.senders,
        max_senders=request.max_senders,
        rounds=request.plan.rounds,
        cross_check=missing is None,
        engine=engine is not None,
        agree=agree_within(target, run.environment.machine, targets.sender_cpus(target)),
        figure_rounds=request.figure_rounds,
    )
    return _Bench(
        run=run, folder=folder, target=target, request=request, say=say, plan=plan, payload=pool,
        reader=StatisticsReader(KServe(target.url, request.allowed), target, targets.server_pid(target)),
        drivers={"search": locust, "one_more_sender": locust, "figure": locust, "cross_check": PerfAnalyzerDriver()},
        no_cross_check=missing, alone=Alone(reason="not reached", failed=True) if engine else Alone(reason=reason),
    )  # fmt: skip


def _no_cross_check(target: Target, request: Request) -> str | None:
    """Why perf_analyzer is not to run, or None."""
    if not request.cross_check:
        return "switched off with --no-cross-check"
    limit = request.allowed.get(KServe(target.url, request.allowed).endpoint.host)
    if limit is not None and limit.max_rate_per_s is not None:
        return f"perf_analyzer in closed loop keeps to no rate, and {limit.host} allows {limit.max_rate_per_s:g}/s"
    return available()


def _gather(bench: _Bench) -> None:
    """Every step that the plan asks for; a signal or a lost server ends it early but loses nothing."""
    try:
        while bench.lost is None and (step := next_step(bench.plan, bench.done)) is not None:
            if step.purpose == "alone":
                bench.done.append(Done(step=step, rates=_run_alone(bench)))
            else:
                _send(bench, step)
        if bench.lost is None:
            _compare_values(bench)
    except Interrupted as stopped:
        bench.interrupted = stopped
    except NotReady as gone:
        if not bench.loads:  # nothing was sent yet: the target was never there
            raise
        bench.lost = str(gone)


def _evidence(bench: _Bench) -> Evidence:
    limit = bench.request.allowed.get(KServe(bench.target.url, bench.request.allowed).endpoint.host)
    return Evidence(
        run=bench.run, target=bench.target, plan=bench.plan, done=tuple(bench.done), loads=tuple(bench.loads),
        alone=bench.alone, items_per_request=bench.request.items_per_request,
        payload=prepared.load(bench.payload).source, no_cross_check=bench.no_cross_check,
        interrupted=bench.interrupted is not None, lost=bench.lost,
        max_rate_per_s=limit.max_rate_per_s if limit else None, sender_cpus=targets.sender_cpus(bench.target),
    )  # fmt: skip


def _send(bench: _Bench, step: Step) -> None:
    """Send one load and book it. Lost if a sender of our own died: its share is missing from every figure."""
    driver = bench.drivers[step.purpose]
    spec = _spec(bench, step, driver)
    index = len(bench.loads)
    words = f"[{len(bench.done) + 1}] {bench.target.model}: {step.purpose.replace('_', ' ')}"
    words += f", {step.concurrency} in flight" + (f", {step.senders} senders" if step.senders > 1 else "")
    bench.say.progress(f"{words} ({driver.generator})")

    def progress(elapsed_s: float, wanted_s: float) -> None:
        bench.say.detail(f"    {elapsed_s:.0f} s of at least {wanted_s:.0f} s")

    def suffices(reads: Sequence[StatsRead]) -> bool:
        rows = judged.by_completion(read_rows(bench.folder, range(bench.workers, bench.workers + step.senders)))
        try:
            windows = _cut(bench, rows, reads, driver.generator, spec.point)
        except Lost:  # the counters went back: the load is over, and is judged below
            return True
        steadily = step.purpose == "figure"  # the search compares at equal engine speed: a window is enough
        return any(w.kind == "measured" and not (steadily and w.unstable) for w in windows)

    loaded = run_load(
        driver, spec, bench.request.plan, bench.reader, index=index, purpose=step.purpose,
        bins=BINS if step.purpose == "figure" else SEARCH_BINS, suffices=suffices, progress=progress,
    )  # fmt: skip
    with undisturbed():
        measured = _book(bench, step, loaded)
    rate = bench.done[-1].items_per_s
    told = [f"{show.number(rate)} {bench.target.item}s/s" if rate else "no window", *measured.reasons]
    bench.say.progress(f"    {'; '.join(told)}")
    _raise_what_ended(bench, loaded, measured)


def _book(bench: _Bench, step: Step, loaded: Loaded) -> MeasuredLoad:
    bench.workers += max(len(loaded.load.workers), step.senders)
    disk.append(bench.folder / "loads.jsonl", loaded.load)
    measured = _judged(bench, loaded)
    for window in measured.windows:
        disk.append(bench.folder / "windows.jsonl", window)
    bench.loads.append(measured)
    bench.done.append(
        Done(
            step=step,
            rates=measured.rates,
            busy_s_per_item=measured.busy_s_per_item,
            effective_batch=measured.effective_batch,
        )  # fmt: skip
    )
    return measured


def _raise_what_ended(bench: _Bench, loaded: Loaded, measured: MeasuredLoad) -> None:
    said = next(iter((*loaded.load.reasons, *loaded.load.errors)), "")
    if loaded.no_room:
        raise NoResource(said or f"{bench.folder}: no room left; free some, or point --out elsewhere")
    if loaded.interrupted is not None:
        raise loaded.interrupted
    if measured.lost:
        bench.lost = targets.lost_reason(bench.target, bench.request.allowed) or measured.restarted or said
    elif loaded.load.ended == "crashed" and loaded.load.purpose != "cross_check":
        raise Lost(f"{said or 'a sender process ended'}; what was measured is in {bench.folder}")


def _spec(bench: _Bench, step: Step, driver: Driver) -> LoadSpec:
    request, plan = bench.request, bench.request.plan
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
            sender=request.sender if driver.generator == "locust" else "perf_analyzer",
            senders=step.senders,
        ),
        payload=str(bench.payload),
        folder=str(bench.folder / "raw" / f"{len(bench.loads):02d}-{driver.generator}"),
        rows=str(bench.folder / "requests"),
        first_worker=bench.workers,
        seconds=seconds,
        timeout_s=plan.request_timeout_seconds,
        drain_s=plan.longest_drain_s,
        samples=plan.samples,
        allowed=request.allowed,
        cpus=targets.sender_cpus(bench.target),
    )


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
        period_ns=period_ns(rows, loaded.reads),
        kept=alone.Kept(folder=loaded.folder, samples=loaded.samples),
        reads=loaded.reads,
        restarted=restarted,
    )


def _cut(
    bench: _Bench, rows: judged.Rows, reads: Sequence[StatsRead], generator: judged.Generator, point: LoadPoint
) -> list[Window]:
    plan = bench.request.plan
    if len(rows):
        bench.period_s = period_ns(rows, reads) / 1e9
    return windows_of(
        rows, reads, generator=generator, point=point, min_seconds=plan.window_seconds,
        min_batches=plan.window_batches, max_seconds=plan.window_limit_seconds,
    )  # fmt: skip


def _run_alone(bench: _Bench) -> tuple[float, ...]:
    """The engine alone at the served batch, now that the server is idle; a failure is a broken check, not the end."""
    variant, model = bench.target.variant, targets.engine_file(bench.target)
    assert variant is not None and model is not None  # else the plan has no such step
    batch = max(1, round(bench.loads[-1].effective_batch or 1))
    words = f"the same engine alone, batch {batch}, {variant.config.threads} thread(s)"
    bench.say.progress(f"[{len(bench.done) + 1}] {bench.target.model}: {words}")
    folder = bench.folder / "raw" / f"ceiling-{len(bench.alone.rates)}"
    try:
        rate = alone.ceiling(variant, model, batch, folder)
    except BrimError as error:
        bench.alone = Alone(reason=str(error), failed=True)
        return ()
    bench.say.progress(f"    {show.number(rate)} {bench.target.item}s/s")
    bench.alone = Alone(rates=(*bench.alone.rates, rate))
    return (rate,)


def _compare_values(bench: _Bench) -> None:
    """Answers that were kept under load against the engine's own."""
    variant, model = bench.target.variant, targets.engine_file(bench.target)
    kept = [load.kept for load in bench.loads if load.load.purpose == "figure"]
    if variant is None or model is None or not bench.alone.rates:
        return
    try:
        values = alone.compare_values(
            bench.target, variant, model, bench.payload, kept, bench.folder / "raw" / "values"
        )
    except BrimError as error:
        bench.alone = Alone(rates=bench.alone.rates, reason=str(error), failed=True)
        return
    bench.alone = Alone(rates=bench.alone.rates, values=values)
