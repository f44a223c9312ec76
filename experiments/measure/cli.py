"""`brim loadtest`: what to measure, how, and the answer as text or as one JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from brim import guard, layout
from brim.cli import Outcome, verb
from brim.errors import BrimError, Interrupted, UsageError, worst_exit
from brim.records import Saturation, Target, TargetLimit
from brim.say import Say
from loadtest.plan import LOAD_LIMIT_SECONDS, read_plan

if TYPE_CHECKING:
    from experiments.measure.run import Request
    from experiments.measure.targets import Wanted

#: Verdict -> exit code of the command.
EXIT_CODES = {
    "saturated": 0, "point": 0, "still_rising": 4, "client_limited": 4, "unstable": 4, "failing": 4, "server_lost": 5,
    "aborted": 130,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The one document of --json: every variant's answer, and why the others have none."""

    batch_id: str
    results: tuple[Saturation, ...]
    failures: Mapping[str, str]


@dataclass(slots=True, kw_only=True)
class _Tally:
    """What has come of the targets so far."""

    results: list[Saturation] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    endings: list[tuple[int, str]] = field(default_factory=list)


@verb("Measure how many items per second a served model gives: TARGET is a variant, or a URL and a model's name.")
@click.argument("target", nargs=-1)
@click.option("--concurrency", type=click.IntRange(min=1), help="One point (verdict `point`) instead of the search.")
@click.option("--senders", type=click.IntRange(min=1), default=1, show_default=True, help="Sender processes.")
@click.option("--items-per-request", type=click.IntRange(min=1), help="Items in each request.  [default: 1]")
@click.option("--shape", "shapes", multiple=True, metavar="NAME:DIMS", help="Dimensions that the model leaves open.")
@click.option("--input-data", metavar="FILE|FOLDER", help="Your own inputs instead of random ones.")
@click.option("--model-version", default="", help="Version of the model.  [default: the server's choice]")
@click.option("--loads", type=click.Path(path_type=Path), help="Your own loads.toml.")
@click.option("--allow-remote", multiple=True, metavar="HOST", help="Load this host though it is not loopback.")
@click.option("--project", type=click.Path(path_type=Path), help="File with the [targets] table.  [default: brim.toml]")
@click.option("--cross-check/--no-cross-check", default=True, show_default=True, help="perf_analyzer at the point.")
def loadtest(
    say: Say,
    out: Path,
    target: tuple[str, ...],
    concurrency: int | None,
    senders: int,
    items_per_request: int | None,
    shapes: tuple[str, ...],
    input_data: str | None,
    model_version: str,
    loads: Path | None,
    allow_remote: tuple[str, ...],
    project: Path | None,
    cross_check: bool,
) -> int:
    # The measuring modules take seconds to import; --help and a wrong option need none of them.
    from experiments.measure import ledger, targets
    from experiments.measure.run import Request, exclusive

    plan = read_plan(loads)
    allowed = allowed_targets(project, allow_remote)
    open_shapes = dict(parse_shape(text) for text in shapes)
    request = Request(
        plan=plan,
        batch_id=ledger.new_batch_id(),
        allowed=allowed,
        concurrency=concurrency,
        senders=senders,
        items_per_request=items_per_request or plan.items_per_request,
        input_data=input_data,
        cross_check=cross_check,
    )
    recovered, refused = ledger.recover(out)
    for run in recovered:
        say.warn(f"run {run} was cut off by a kill; closed it, what was measured is kept")
    for reason in refused:
        say.warn(f"a run that was cut off could not be closed: {reason}")
    wanted = targets.wanted(target, model_version, out)
    tally = _Tally()
    with exclusive():
        _measure_all(wanted, request, open_shapes, tally, out, say)
    results, failures = tuple(tally.results), tally.failures
    say.document(Answers(batch_id=request.batch_id, results=results, failures=failures))
    return finish(tally.endings)


def _measure_all(
    wanted: Sequence[Wanted],
    request: Request,
    shapes: Mapping[str, tuple[int, ...]],
    tally: _Tally,
    out: Path,
    say: Say,
) -> None:
    """One target after the other; a signal ends the rest, and every target is accounted for in the tally."""
    from experiments.measure import targets
    from experiments.measure.run import measure

    for position, one in enumerate(wanted):
        try:
            announce(one, request, say)
            described = targets.describe(one, request.allowed, shapes)
            answer, interrupted = measure(described, request, out=out, say=say)
            tally.results.append(answer)
            tell(say, answer, described, out)
            if interrupted is not None:
                raise interrupted
            tally.endings.append(ending(answer))
        except BrimError as error:
            tally.failures[one.model] = str(error)
            tally.endings.append((error.exit_code, error.word))
            say.warn(f"{one.model}: {error}" if len(wanted) > 1 else str(error))
        except Interrupted as stopped:
            tally.endings.append((stopped.exit_code, stopped.word))
            measured = {answer.variant for answer in tally.results}
            left = (w.model for w in wanted[position:] if w.model not in measured)
            tally.failures |= dict.fromkeys(left, "not reached: stopped by a signal")
            return


def announce(one: Wanted, request: Request, say: Say) -> None:
    """Before a host that is not this machine is asked or sent anything."""
    from experiments.measure import show
    from experiments.measure.steps import most_loads

    endpoint = guard.parse_url(one.url)
    guard.judge(endpoint.host, endpoint.port, request.allowed)
    limit = request.allowed.get(endpoint.host)
    if limit is not None:
        loads = most_loads(
            single_point=request.concurrency is not None, senders=request.senders, max_senders=request.max_senders,
            rounds=request.plan.rounds,
        )  # fmt: skip
        seconds = LOAD_LIMIT_SECONDS + request.plan.longest_drain_s
        say.warn(show.announcement(one.url, one.model, limit, loads=loads, seconds=seconds))


def allowed_targets(project: Path | None, allow_remote: Sequence[str]) -> dict[str, TargetLimit]:
    """The hosts that may be loaded: a project file's cap is never lifted by --allow-remote."""
    if project is not None and not project.exists():
        raise UsageError(f"--project {project}: there is no such file")
    named = {host.lower(): TargetLimit(host=host.lower()) for host in allow_remote}
    return named | guard.read_allowed(project or Path("brim.toml"))


def ending(answer: Saturation) -> tuple[int, str]:
    """Exit code and word of one answer."""
    return EXIT_CODES[answer.verdict], answer.verdict


def finish(endings: list[tuple[int, str]]) -> int:
    """0 if all went well, else Outcome with the ending that comes first in the contract's order."""
    code = worst_exit(c for c, _ in endings)
    if code:
        raise Outcome(code, next(word for c, word in endings if c == code))
    return 0


def tell(say: Say, answer: Saturation, described: Target, out: Path) -> None:
    """The answer for a person."""
    from experiments.measure import show

    say.answer(show.headline(answer))
    for line in (*show.details(answer), show.scope(answer, described), f"kept in {_near(out, answer.run)}"):
        say.answer(f"  {line}")


def _near(out: Path, run: str) -> Path:
    folder = layout.run_folder(out, run)
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`image:3,224,224` (commas or x) as (name, dimensions)."""
    name, colon, dims = text.rpartition(":")
    try:
        shape = tuple(int(d) for d in dims.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not colon or not name or not shape or min(shape) < 1:
        raise UsageError(f"--shape {text!r}: write NAME:DIMS, as in image:3,224,224")
    return name, shape


command = loadtest
