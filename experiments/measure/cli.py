"""`brim loadtest`: what to measure, how, and the answer as text or as one JSON document."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from brim import disk, environment, guard, layout
from brim.cli import Outcome, verb
from brim.errors import BrimError, Interrupted, Lost, UsageError, WorkerLost, worst_exit
from brim.records import Overload, Saturation, SloRate, Target
from brim.say import Say
from experiments.measure.options import Options, allowed_targets, no_search, parse_shape, request_of
from experiments.measure.progress import Progress
from loadtest.plan import LOAD_LIMIT_SECONDS

if TYPE_CHECKING:
    from experiments.measure.request import Request
    from experiments.measure.run import TargetOutcome
    from experiments.measure.targets import Wanted

#: How long a master waits for its workers, and a worker for its master.
WORKERS_WITHIN_S = 120.0
#: What `--worker` heeds beside it; the master says the rest.
FOR_A_WORKER = frozenset({"worker", "out", "allow_remote", "project", "quiet", "verbose"})
#: Verdict -> exit code of the command.
EXIT_CODES = {
    "saturated": 0, "point": 0, "still_rising": 4, "client_limited": 4, "unstable": 4, "failing": 4, "server_lost": 5,
    "aborted": 130,
}  # fmt: skip
#: The same of the rate at an SLO; one that cannot be told apart in the time that was given is no fault.
SLO_EXIT_CODES = {
    "resolved": 0, "met": 0, "not_resolvable": 0, "unattainable": 1, "missed": 1, "failing": 4, "server_lost": 5,
    "aborted": 130,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The one document of --json: every variant's answer, and why the others have none."""

    batch_id: str
    results: tuple[Saturation, ...]
    failures: Mapping[str, str]
    slo_rates: Mapping[str, SloRate] = field(default_factory=dict)  # by variant
    overloads: Mapping[str, Overload] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class _Tally:
    """What has come of the targets so far."""

    measured: dict[str, TargetOutcome] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    endings: list[tuple[int, str]] = field(default_factory=list)
    next_step: str = ""  # what to type after the last of them

    def leave(self, wanted: Sequence[Wanted], why: str) -> None:
        """Account for the targets that are not measured any more."""
        self.failures |= {one.model: why for one in wanted if one.model not in self.measured}

    def document(self, batch_id: str) -> Answers:
        every = self.measured.items()
        return Answers(
            batch_id=batch_id,
            results=tuple(one.saturation for _, one in every if one.saturation),
            failures=self.failures,
            slo_rates={name: one.slo for name, one in every if one.slo},
            overloads={name: one.overload for name, one in every if one.overload},
        )


@verb("Measure how many items per second a served model gives: TARGET is a variant, or a URL and a model's name.")
@click.argument("target", nargs=-1)
@click.option("--concurrency", metavar="N|FROM:TO", help="One point (verdict `point`), or bounds of the ladder.")
@click.option(
    "--starts", type=click.IntRange(1, 20), default=1, show_default=True, help="Server starts; 3 for a 95% CI."
)
@click.option("--senders", type=click.IntRange(min=1), default=1, show_default=True, help="Sender processes.")
@click.option("--items-per-request", type=click.IntRange(min=1), help="Items in each request.  [default: 1]")
@click.option("--protocol", type=click.Choice(["http", "grpc"]), help="Of a variant.  [default: http; a URL says it]")
@click.option("--transport", type=click.Choice(["wire", "shared-memory", "cuda-shared-memory"]), default="wire",
              show_default=True, help="How inputs travel.")  # fmt: skip
@click.option("--client", type=click.Choice(["brim", "tritonclient"]), default="brim", show_default=True,
              help="What sends: prepared bytes, or tritonclient as services use it.")  # fmt: skip
@click.option("--gzip", is_flag=True, help="Compress requests.")
@click.option("--channels", type=click.IntRange(1, 64), default=1, show_default=True, help="gRPC connections a sender.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME:DIMS", help="Dimensions that the model leaves open.")
@click.option("--input-data", metavar="FILE|FOLDER", help="Your own inputs instead of random ones.")
@click.option("--model-version", default="", help="Version of the model.  [default: the server's choice]")
@click.option("--loads", type=click.Path(path_type=Path), help="Your own loads.toml.")
@click.option("--tls-ca", metavar="PEM", help="Authority of an https:// or grpcs:// target.  [default: the system's]")
@click.option("--tls-cert", metavar="PEM", help="Certificate that the client shows.")
@click.option("--tls-key", metavar="PEM", help="Its key.")
@click.option(
    "--header", "headers", multiple=True, metavar="NAME=@FILE", help="Send a header; its value stays in FILE."
)
@click.option("--allow-remote", multiple=True, metavar="HOST", help="Load this host though it is not loopback.")
@click.option("--project", type=click.Path(path_type=Path), help="File with the [targets] table.  [default: brim.toml]")
@click.option("--cross-check/--no-cross-check", default=None, help="perf_analyzer at the point.  [default: it runs]")
@click.option("--rate", type=float, metavar="R", help="Open loop: R requests/s by the clock, whatever the server does.")
@click.option("--arrivals", type=click.Choice(["constant", "poisson", "gamma"]), help="Of --rate.  [default: poisson]")
@click.option("--cv", type=float, help="Coefficient of variation of gamma arrivals' gaps.")
@click.option("--trace", type=click.Path(path_type=Path), help="Open loop: recorded arrivals, a timestamp in s a line.")
@click.option("--speed-up", type=float, help="Play the trace so many times as fast.")
@click.option("--seconds", type=float, help="Of an open loop.  [default: 30; of a trace: all]")
@click.option("--seed", type=click.IntRange(min=0), help="Of random arrivals.  [default: 0]")
@click.option("--outstanding", type=click.IntRange(1, 16384), help="Open loop: in flight at most.  [default: 512]")
@click.option("--slo-ms", metavar="MS|auto", help="Also find the largest rate with this latency; auto: 5 full batches.")
@click.option("--percentile", type=float, help="Of --slo-ms.  [default: 99; 95 below 50/s]")
@click.option("--slo-seconds", type=float, help="For finding that rate.  [default: 60]")
@click.option("--model-free", is_flag=True, help="Rest the rate at the SLO on the data alone.")
@click.option("--slo-only", is_flag=True, help="Do not search for the peak before.")
@click.option("--overload", is_flag=True, help="After --slo-ms: goodput beyond that rate, recovery, queue limits.")
@click.option("--master", metavar="HOST:PORT", help="Let workers on other hosts send; they connect here.")
@click.option("--expect-workers", type=click.IntRange(1, 64), help="With --master: how many workers to wait for.")
@click.option("--worker", metavar="HOST:PORT", help="Be a worker of the master there, and nothing else.")
def loadtest(say: Say, out: Path, target: tuple[str, ...], **options: Any) -> int:
    asked = Options(**options)
    if asked.worker is not None:
        _work(asked, target, out)
    # The measuring modules take seconds to import; --help and a wrong option need none of them.
    from experiments.measure import ledger, targets
    from experiments.measure.run import exclusive

    request = request_of(asked, batch_id=ledger.new_batch_id())
    if asked.slo_ms is not None and request.slo is None:
        say.warn(no_search(asked, request.items_per_request))
    open_shapes = dict(parse_shape(text) for text in asked.shapes)
    recovered, refused = ledger.recover(out)
    for run in recovered:
        say.warn(f"run {run} was cut off by a kill; closed it, what was measured is kept")
    for reason in refused:
        say.warn(f"a run that was cut off could not be closed: {reason}")
    wanted = targets.wanted(target, asked.model_version, out, asked.protocol)
    tally = _Tally()
    with exclusive(), _load_hosts(asked, request, say) as request, say.live() as update:
        _measure_all(wanted, request, open_shapes, tally, out, say, Progress(update, len(wanted)))
    say.document(tally.document(request.batch_id))
    report(say, [one.run for one in tally.measured.values()], out)
    if tally.next_step:
        say.answer(tally.next_step)
    return finish(tally.endings)


def _work(asked: Options, target: Sequence[str], out: Path) -> NoReturn:
    """Become a worker of the master that --worker names."""
    from loadtest.cluster_driver import worker_command, worker_environment
    from loadtest.cluster_wire import parse_place

    if said := [*target, *_said_beside(FOR_A_WORKER)]:
        raise UsageError(f"--worker takes no {said[0]}: the master says what to load, and how")
    folder = disk.make_folder(out / "worker")
    allowed = allowed_targets(asked.project, asked.allow_remote)
    command = worker_command(parse_place(str(asked.worker), "--worker"), WORKERS_WITHIN_S, folder, allowed)
    os.execve(command[0], command, worker_environment())


def _said_beside(known: Collection[str]) -> list[str]:
    """The options on the command line that are none of these."""
    context = click.get_current_context()
    return [
        option.opts[0]
        for option in context.command.params
        if option.name not in known
        and context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
        and isinstance(option, click.Option)
    ]


@contextlib.contextmanager
def _load_hosts(asked: Options, request: Request, say: Say) -> Iterator[Request]:
    """The request with workers on other hosts as its senders, where they were asked for."""
    if asked.master is None or asked.expect_workers is None:
        yield request
        return
    from loadtest.cluster_driver import cluster
    from loadtest.cluster_wire import parse_place

    place = parse_place(asked.master, "--master")
    with cluster(place, asked.expect_workers, WORKERS_WITHIN_S, tell=say.progress) as driver:
        yield replace(request, cluster=driver, workers=asked.expect_workers)


def _measure_all(
    wanted: Sequence[Wanted],
    request: Request,
    shapes: Mapping[str, tuple[int, ...]],
    tally: _Tally,
    out: Path,
    say: Say,
    progress: Progress,
) -> None:
    """One target after the other; a signal ends the rest, and every target is accounted for in the tally."""
    from experiments.measure import show, targets
    from experiments.measure.run import measure

    for position, one in enumerate(wanted):
        try:
            announce(one, request, say)
            now = targets.again(one, out) if request.starts > 1 else one
            described = targets.describe(now, request.allowed, shapes, request.access)
            if not tally.measured:
                say.answer(show.opening(described, environment.machine(), local=targets.local(described)))
            found = measure(described, request, out=out, say=say, progress=progress)
            tally.measured[one.model] = found
            tally.next_step = _next_step(found, described)
            _tell_all(say, found, described, out)
            if found.failed is not None:
                raise found.failed
            if found.interrupted is not None:
                raise found.interrupted
            tally.endings += _endings(found)
        except BrimError as error:
            tally.failures[one.model] = str(error)
            tally.endings.append((error.exit_code, error.word))
            say.warn(f"{one.model}: {error}" if len(wanted) > 1 else str(error))
            if request.cluster is not None and isinstance(error, WorkerLost):
                tally.leave(wanted[position + 1 :], "not reached: a worker was lost")
                return
        except Interrupted as stopped:
            tally.endings.append((stopped.exit_code, stopped.word))
            tally.leave(wanted[position:], "not reached: stopped by a signal")
            return
        finally:
            progress.target_ended()


def announce(one: Wanted, request: Request, say: Say) -> None:
    """Before a host that is not this machine is asked or sent anything."""
    from experiments.measure import show
    from experiments.measure.plan import bound_of, further_loads
    from experiments.measure.steps import most_loads

    endpoint = guard.parse_url(one.url)
    guard.judge(endpoint.host, endpoint.port, request.allowed)
    limit = request.allowed.get(endpoint.host)
    if limit is not None:
        loads, lasts_s = most_loads(bound_of(request)) + further_loads(request), LOAD_LIMIT_SECONDS
        if request.open_loop is not None:
            loads, lasts_s = request.starts, request.open_loop.seconds
        elif request.slo is not None:
            lasts_s = max(lasts_s, request.slo.seconds)
        seconds = lasts_s + request.plan.longest_drain_s
        say.warn(show.announcement(one.url, one.model, limit, loads=loads, seconds=seconds))


def ending(answer: Saturation) -> tuple[int, str]:
    """Exit code and word of one answer."""
    return EXIT_CODES[answer.verdict], answer.verdict


def finish(endings: list[tuple[int, str]]) -> int:
    """0 if all went well, else Outcome with the ending that comes first in the contract's order."""
    code = worst_exit(c for c, _ in endings)
    if code:
        raise Outcome(code, next(word for c, word in endings if c == code))
    return 0


def _endings(found: TargetOutcome) -> list[tuple[int, str]]:
    """Exit codes and words of its answers."""
    gated = found.at_a_rate and found.slo is not None  # then whether it was met is the question
    endings = [ending(found.saturation)] if found.saturation and not gated else []
    endings += [(SLO_EXIT_CODES[found.slo.verdict], found.slo.verdict)] if found.slo else []
    return [*endings, (Lost.exit_code, Lost.word)] if found.lost else endings


def _next_step(found: TargetOutcome, described: Target) -> str:
    """The peak's where it is no good, else that of the rate at the SLO, if there is one."""
    from experiments.measure import show

    peak, slo = found.saturation, found.slo
    at_slo = show.after_slo(slo, found.command, described, overload=found.overload is not None) if slo else ""
    if peak is None or (at_slo and (found.at_a_rate or peak.verdict in ("saturated", "point"))):
        return at_slo
    return show.next_step(peak, described)


def _tell_all(say: Say, found: TargetOutcome, described: Target, out: Path) -> None:
    """Every answer for a person."""
    from analysis import finished
    from analysis.rates import open_lines, overload_lines, slo_lines

    if found.saturation is not None:
        tell(say, found.saturation, described, out)
    else:
        say.answer(described.model)
        say.answer(f"  kept in {_near(out, found.run)}")
    seen = finished.read(layout.run_folder(out, found.run)).open_loops if found.at_a_rate else ()
    lines = [line for one in seen for line in open_lines(one, described.item)]
    lines += slo_lines(found.slo, described.item) if found.slo else []
    lines += overload_lines(found.overload, described.item) if found.overload else []
    for line in lines:
        say.answer(f"  {line}")


def tell(say: Say, answer: Saturation, described: Target, out: Path) -> None:
    """The answer for a person."""
    from experiments.measure import show

    say.answer(show.headline(answer))
    for line in (*show.details(answer), show.scope(answer, described), f"kept in {_near(out, answer.run)}"):
        say.answer(f"  {line}")


def report(say: Say, runs: Sequence[str], out: Path) -> None:
    """The page of this command's runs; one that cannot be written costs nothing that was measured."""
    if not runs:
        return
    try:
        from analysis import report as page  # charts take a second to import
        from experiments.measure import show

        written = page.write(out, [layout.run_folder(out, run) for run in runs])
        say.answer(show.closing(layout.latest_report(out) / written.name))
    except (BrimError, ModuleNotFoundError) as error:
        say.warn(f"no report: {error}; what was measured is kept, and `brim report` tries again")


def _near(out: Path, run: str) -> Path:
    folder = layout.run_folder(out, run)
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


command = loadtest
