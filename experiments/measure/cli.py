"""`brim loadtest`: what to measure, how, and the answer as text or as one JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from brim import guard, layout
from brim.cli import Outcome, verb
from brim.errors import BrimError, Interrupted, UsageError, worst_exit
from brim.records import Saturation, Target, TargetLimit
from brim.say import Say
from experiments.measure import ledger, show, targets
from experiments.measure.run import Request, measure
from loadtest.plan import read_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The one document of --json: every variant's answer, and why the others have none."""

    batch_id: str
    results: tuple[Saturation, ...]
    failures: Mapping[str, str]


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
@click.option(
    "--project",
    type=click.Path(path_type=Path),
    default="brim.toml",
    show_default=True,
    help="Project file with the [targets] that may be loaded.",
)
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
    project: Path,
    cross_check: bool,
) -> int:
    plan = read_plan(loads)
    allowed = {**guard.read_allowed(project), **{h: TargetLimit(host=h) for h in allow_remote}}
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
    open_shapes = dict(parse_shape(text) for text in shapes)
    results: list[Saturation] = []
    failures: dict[str, str] = {}
    endings: list[tuple[int, str]] = []
    for recovered in ledger.recover(out):
        say.warn(f"run {recovered} was cut off by a kill; closed it, what was measured is kept")
    for one in targets.wanted(target, model_version, out):
        try:
            described = targets.describe(one, allowed, open_shapes)
            answer = measure(described, request, out=out, say=say)
        except BrimError as error:
            failures[one.model] = str(error)
            endings.append((error.exit_code, error.word))
            say.warn(f"{one.model}: {error}")
            continue
        except Interrupted as stopped:
            endings.append((stopped.exit_code, stopped.word))
            break
        results.append(answer)
        endings.append(ending(answer))
        tell(say, answer, described, out)
    say.document(Answers(batch_id=request.batch_id, results=tuple(results), failures=failures))
    return finish(endings)


#: Verdict -> exit code of the command.
EXIT_CODES = {
    "saturated": 0, "point": 0, "still_rising": 4, "client_limited": 4, "unstable": 4, "failing": 4, "server_lost": 5,
    "aborted": 130,
}  # fmt: skip


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
