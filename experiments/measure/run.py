"""The shell of a measurement: ask for the next step, act, record; then judge what was recorded.

Writes out/runs/<run>/; whatever ends it (a signal, a lost server, a full disk), children have ended, rows are closed
and what was measured is kept.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from brim import disk, guard, layout
from brim.errors import BrimError, Interrupted, NotReady, UsageError
from brim.offspring import undisturbed
from brim.records import Overload, Run, Saturation, Server, SloRate, Target
from brim.say import Say
from experiments.measure import alone, ledger, payloads, show, targets
from experiments.measure.answer import agree_within, answer
from experiments.measure.bench import Bench
from experiments.measure.experiment import Done, Step
from experiments.measure.gathered import Alone, Evidence
from experiments.measure.plan import plan_of
from experiments.measure.progress import Progress
from experiments.measure.rate_at_slo import rate_at_slo
from experiments.measure.request import SENDERS, Request
from experiments.measure.send import send
from experiments.measure.steps import next_step
from experiments.overload.measure import beyond
from loadtest import payload, prepared
from loadtest.control import control
from loadtest.perf_analyzer_command import refusal
from loadtest.perf_analyzer_driver import PerfAnalyzerDriver, available
from loadtest.sender_driver import SenderDriver
from loadtest.statistics_reader import StatisticsReader
from serve.restart import require_ours, restart


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Keep other measurements away from this machine: two measurements measure each other."""
    with disk.lock(ledger.machine_lock(), "another brim is measuring on this machine; wait for it"):
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOutcome:
    """What came of one target; what was not asked for, or not reached, is None."""

    run: str
    command: str
    saturation: Saturation | None
    slo: SloRate | None = None
    overload: Overload | None = None
    interrupted: Interrupted | None = None  # the signal that ended it early, to be raised again
    lost: str | None = None  # why the server no longer answers
    failed: BrimError | None = None  # what ended it after the peak

    @property
    def at_a_rate(self) -> bool:
        """An open loop was asked for."""
        return self.saturation is not None and self.saturation.at.mode == "open"


def measure(target: Target, request: Request, *, out: Path, say: Say, progress: Progress) -> TargetOutcome:
    """Measure one target from the first request to its answers; call it inside `exclusive`.

    A signal ends it early: its answers then say `aborted`.
    """
    _refuse(target, request)
    with contextlib.ExitStack() as held:
        if target.server is not None:
            held.enter_context(_server_lock(target.server, out))
        started = time.monotonic()
        run = ledger.open_run(out, target, request.batch_id)
        try:
            bench = _prepare(run, target, request, out, say, progress, held)
            peak = None if request.slo is not None and request.slo.only else _peak(bench, started)
            slo, overload, failed = _rates(bench, peak)
        finally:
            with undisturbed():
                ledger.close_run(out, run)
    return TargetOutcome(
        run=run.id, command=run.command, saturation=peak, slo=slo, overload=overload, interrupted=bench.interrupted,
        lost=bench.lost, failed=failed,
    )  # fmt: skip


def _rates(bench: Bench, peak: Saturation | None) -> tuple[SloRate | None, Overload | None, BrimError | None]:
    """The rate at the SLO and what comes beyond it; an error there costs nothing that was found before."""
    slo = None
    try:
        slo = rate_at_slo(bench, peak)
        return slo, beyond(bench, slo), None
    except Interrupted as stopped:
        bench.interrupted = stopped
        return slo, None, None
    except BrimError as error:
        if peak is None and slo is None:
            raise
        return slo, None, error


def _peak(bench: Bench, started_s: float) -> Saturation:
    """The plateau, or the one point that was asked for."""
    _gather(bench)
    with undisturbed():
        found = answer(_evidence(bench), seconds_spent=time.monotonic() - started_s)
        disk.save(bench.folder / "saturation.json", found)
    bench.senders = found.at.senders
    return found


def _server_lock(server: Server, out: Path) -> contextlib.AbstractContextManager[None]:
    return disk.lock(
        layout.server_folder(out, server.id) / "lock", f"the server {server.id} is being measured; wait for it"
    )


def _refuse(target: Target, request: Request) -> None:
    """What cannot be loaded as asked, told before a run is opened."""
    payload.check_items(target, request.items_per_request)
    if request.channels > 1 and targets.protocol(target) == "http":
        raise UsageError(f"--channels {request.channels}: only gRPC has channels; add --protocol grpc, or leave it out")
    plain = guard.parse_url(target.url).scheme in ("http", "grpc")
    if plain and (request.access.tls_ca or request.access.tls_cert):
        raise UsageError(f"--tls-ca, --tls-cert: {target.url} is not encrypted; write https:// or grpcs://")
    if request.starts > 1:
        require_ours(target.server, f"--starts {request.starts}")
    plan_of(target, request, cross_check=False, transfer=False, agree=0.0)


def _prepare(
    run: Run, target: Target, request: Request, out: Path, say: Say, progress: Progress, held: contextlib.ExitStack
) -> Bench:
    folder = layout.run_folder(out, run.id)
    protocol = targets.protocol(target)
    ask = control(target.url, request.allowed, request.access)
    sent = payloads.prepare(run, target, request, folder, protocol=protocol, control=ask, held=held, say=say)
    missing = _no_cross_check(target, request)
    if missing is not None and request.cross_check and request.open_loop is None:
        say.warn(f"no cross-check: {missing}")
    agree = agree_within(target, run.environment.machine, targets.sender_cpus(target), local=targets.local(target))
    plan = plan_of(target, request, cross_check=missing is None, transfer=sent.lighter is not None, agree=agree)
    return Bench(
        run=run, folder=folder, out=out, target=target, request=request, say=say, progress=progress,
        plan=plan, control=ask, reader=StatisticsReader(ask, target, targets.server_pid(target)), payloads=sent,
        own=request.cluster or SenderDriver(), other=PerfAnalyzerDriver(),
        sender=SENDERS[protocol, request.client], protocol=protocol, no_cross_check=missing, held=held,
        senders=request.first_senders,
        alone=Alone(reason="not reached", failed=True) if plan.engine else Alone(reason=_not_alone(target, request)),
    )  # fmt: skip


def _not_alone(target: Target, request: Request) -> str:
    """Why the engine is not run alone."""
    if request.open_loop is not None:
        return "the rate is the sender's, not the engine's"
    return "a known server has no engine" if target.variant else "not served by Brim: its engine is not here"


def _no_cross_check(target: Target, request: Request) -> str | None:
    """Why perf_analyzer is not to run, or None."""
    if request.open_loop is not None:
        return "a rate was asked for: it is kept, or it is not"
    if not request.cross_check:
        return "switched off with --no-cross-check"
    return refusal(
        target.url, transport=request.transport, compression=request.compression, access=request.access,
        allowed=request.allowed,
    ) or available()  # fmt: skip


def _gather(bench: Bench) -> None:
    """Every step that the plan asks for; a signal or a lost server ends it early but loses nothing."""
    try:
        while bench.lost is None and (step := next_step(bench.plan, bench.done)) is not None:
            if step.start > bench.start:
                _restart(bench, step)
            elif step.purpose == "alone":
                _alone(bench, step)
            else:
                send(bench, step)
            bench.progress.step_ended()
        if bench.lost is None:
            _compare_values(bench)
    except Interrupted as stopped:
        bench.interrupted = stopped
    except NotReady as gone:
        if not bench.loads:  # nothing was sent yet: the target was never there
            raise
        bench.lost = str(gone)


def _restart(bench: Bench, step: Step) -> None:
    """The server anew, in the same place; one that does not come back is lost, and what was measured is kept."""
    assert bench.target.server is not None  # refused before the run was opened
    bench.say.progress(f"[{len(bench.done) + 1}] {bench.target.model}: server start {step.start + 1}")
    busy = f"a brim serve is at work in {bench.out}"
    try:
        with disk.lock(layout.servers(bench.out) / "serve.lock", busy):
            server = restart(bench.target.server, out=bench.out, say=bench.say)
    except Interrupted:
        bench.say.warn(f"{bench.target.server.id} was stopped to be started again; `brim serve` brings it back")
        raise
    except BrimError as error:
        bench.lost = f"the server did not start again: {error}"
        return
    if server.id != bench.target.server.id:
        bench.held.enter_context(_server_lock(server, bench.out))
    bench.target = replace(bench.target, server=server)
    bench.reader = StatisticsReader(bench.control, bench.target, targets.server_pid(bench.target))
    bench.start = step.start


def _evidence(bench: Bench) -> Evidence:
    limit = bench.request.allowed.get(guard.parse_url(bench.target.url).host)
    return Evidence(
        run=bench.run, target=bench.target, plan=bench.plan, done=tuple(bench.done), loads=tuple(bench.loads),
        alone=bench.alone, items_per_request=bench.request.items_per_request,
        payload=prepared.load(bench.payloads.asked).source, no_cross_check=bench.no_cross_check,
        interrupted=bench.interrupted is not None, lost=bench.lost,
        local=targets.local(bench.target), link_bytes_per_s=targets.link_bytes_per_s(bench.target),
        loopback_bytes_per_s=bench.payloads.loopback_bytes_per_s,
        max_rate_per_s=limit.max_rate_per_s if limit else None, sender_cpus=targets.sender_cpus(bench.target),
        calibration=ledger.calibration(bench.out),
    )  # fmt: skip


def _alone(bench: Bench, step: Step) -> None:
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
        bench.done.append(Done(step=step, rates=()))
        return
    bench.say.progress(f"    {show.number(rate)} {bench.target.item}s/s")
    bench.alone = Alone(rates=(*bench.alone.rates, rate))
    bench.done.append(Done(step=step, rates=(rate,)))


def _compare_values(bench: Bench) -> None:
    """Answers that were kept under load against the engine's own."""
    variant, model = bench.target.variant, targets.engine_file(bench.target)
    kept = [load.kept for load in bench.loads if load.load.purpose == "figure"]
    if variant is None or model is None or not bench.alone.rates:
        return
    try:
        values = alone.compare_values(
            bench.target, variant, model, bench.payloads.asked, kept, bench.folder / "raw" / "values"
        )
    except BrimError as error:
        bench.alone = Alone(rates=bench.alone.rates, reason=str(error), failed=True)
        return
    bench.alone = Alone(rates=bench.alone.rates, values=values)
