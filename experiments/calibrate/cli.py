"""`brim calibrate`: measure servers of known capacity, and hold every generator against the servers' own logs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from brim.cli import Outcome, verb
from brim.errors import NotReady, UsageError
from brim.say import Say

if TYPE_CHECKING:
    from experiments.calibrate.plan import Cell
    from judging.windows import Generator

HELP = """Measure servers of known capacity, and hold every generator against the servers' own logs.

Without --known: sleep with one and with two instances, affine, and null, in two minutes. With it: that server alone and
in doublings, up to two full batches in flight for each instance, then at 50% and 75% of its capacity. Ends with 0 only
if every figure holds: a capacity within 1% of the log, others in closed loop within 2% (or 0.3 ms); in open loop the
mean within 2% of the queueing simulator and the 99th percentile within 5%."""


@verb(HELP)
@click.option("--known", "kind", metavar="KIND", help="One known server: sleep, affine, exponential, contended, …")
@click.option("--service-ms", type=float, help="Of that server: what a batch takes.")
@click.option("--set", "assigned", multiple=True, metavar="NAME=NUMBER", help="Another parameter of that server.")
@click.option("--max-batch", type=click.IntRange(min=1), help="Of that server. [default: 8]")
@click.option("--instances", type=click.IntRange(min=1), help="Of that server. [default: 1]")
@click.option("--concurrency", type=int, multiple=True, help="Only with so many requests in flight; may be repeated.")
@click.option("--seconds", type=click.FloatRange(min=1, max=120), default=4.0, show_default=True,
              help="Length of each load; a slow server needs more.")  # fmt: skip
@click.option("--loadgen", is_flag=True, help="MLPerf LoadGen as a third generator.")
def command(
    say: Say, out: Path, kind: str | None, service_ms: float | None, assigned: Sequence[str], max_batch: int | None,
    instances: int | None, concurrency: Sequence[int], seconds: float, loadgen: bool,
) -> None:  # fmt: skip
    # The measuring modules take seconds to import; --help and a wrong option need none of them.
    from experiments.calibrate import held, run, show

    if math.isnan(seconds):  # which no range leaves out
        raise UsageError("--seconds nan: must be a number from 1 to 120")
    given = {"--service-ms": service_ms, "--max-batch": max_batch, "--instances": instances}
    told = {**{name: value for name, value in given.items() if value is not None}, **dict.fromkeys(assigned[:1])}
    if kind is None and (told or concurrency):
        raise UsageError(f"{next(iter(told), '--concurrency')} is of one known server; name it with --known")
    batch = max_batch or (1 if kind == "exponential" else 8)  # which serves one item at a time
    cells = _cells(kind, _parameters(service_ms, assigned), batch, instances or 1, concurrency)
    made = run.calibrate(cells, out=out, seconds=seconds, say=say, generators=_generators(say, loadgen))
    for line in (show.table(made.rows), *made.verdicts, f"everything sent and logged: {made.folder}"):
        say.answer(line)
    say.document(show.document(made.rows))
    if not held.all_hold(made.rows):
        say.answer("not all of it holds: while other work takes this machine's time, no figure of its latency can")
        raise Outcome(1, "not_calibrated")


def _cells(
    kind: str | None, parameters: Mapping[str, float], max_batch: int, instances: int, concurrency: Sequence[int]
) -> list[Cell]:
    from experiments.calibrate import plan

    if kind is None:
        return plan.short_set()
    served = plan.variant(kind, parameters, max_batch=max_batch, instances=instances)
    return [plan.cell(served, n) for n in concurrency] or plan.ladder(served)


def _parameters(service_ms: float | None, assigned: Sequence[str]) -> dict[str, float]:
    """What is said of the known server; UsageError for what is no number."""
    parameters = {} if service_ms is None else {"service_ms": service_ms}
    for pair in assigned:
        name, _, value = pair.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise UsageError(f"--set {pair}: not NAME=NUMBER, e.g. --set alpha_ms=2") from None
        if name in parameters:
            raise UsageError(f"--set {pair}: {name} is {parameters[name]:g} already; say it once")
        parameters[name] = number
    return parameters


def _generators(say: Say, with_loadgen: bool) -> list[Generator]:
    """Locust, perf_analyzer if it is here, and LoadGen if it was asked for; NotReady if that is not installed."""
    from loadtest import loadgen_driver, perf_analyzer_driver

    generators: list[Generator] = ["locust"]
    if (why := perf_analyzer_driver.available()) is None:
        generators.append("perf_analyzer")
    else:
        say.warn(f"without perf_analyzer: {why}")
    if with_loadgen:
        if (why := loadgen_driver.available()) is not None:
            raise NotReady(why)
        generators.append("loadgen")
    return generators
