"""Which step comes next: pure decisions over what has been measured so far.

Without a concurrency first the search for the load point. Then rounds at it: Locust for the figure, the engine alone,
the other generator; each on a server start of its own where several are asked for.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from experiments.measure import ladder
from experiments.measure.experiment import Done, Plan, Purpose, Step
from judging.tolerances import CEILING
from judging.verdict import gain

#: Rounds at the load point while the generators or the engine alone do not fit, as on a machine whose speed drifts.
FIGURE_ROUNDS_MOST = 4
#: perf_analyzer cannot be told to go on when its record holds no steady window yet; once is bad luck.
CROSS_CHECK_FAILURES = 2


def next_step(plan: Plan, done: Sequence[Done]) -> Step | None:
    """The next step, or None when all is measured. A load that gave no window ends the experiment."""
    if done and done[-1].items_per_s is None and done[-1].step.purpose not in ("alone", "cross_check", "transfer"):
        return None
    if plan.concurrency is None and (step := ladder.next_load(plan, done)) is not None:
        return step
    return _figure(plan, done, ladder.findings(plan, done))


def foreseen(plan: Plan, done: Sequence[Done]) -> list[Step]:
    """The steps still to come if nothing gains any more and all agree: what time is left is estimated from."""
    future, steps = list(done), list[Step]()
    rate = next((d.items_per_s for d in reversed(done) if d.items_per_s), 1.0)
    while (step := next_step(plan, future)) is not None and len(steps) < 100:
        steps.append(step)
        future.append(Done(step=step, rates=(rate,), busy_share=1.0))
    return steps


def most_loads(plan: Plan) -> int:
    """How many loads there can be at the very most: the bound of what is sent to a host that is not ours."""
    at_point = 2 * max(FIGURE_ROUNDS_MOST, plan.starts, plan.figure_rounds) + CROSS_CHECK_FAILURES
    if plan.concurrency is not None:
        return at_point
    climbs = (plan.max_senders - plan.senders + 1) * (len(plan.high) + 1)
    return len(plan.low) + plan.rounds * (climbs + plan.transfer) + at_point


# ---------------------------------------------------------------------------- rounds at the load point


def _figure(plan: Plan, done: Sequence[Done], found: ladder.Found) -> Step | None:
    """The next step of a round at the load point; a cross-check that failed twice is given up."""
    figures, alone, checks = (_rates(done, purpose) for purpose in ("figure", "alone", "cross_check"))
    start = min(max(len(figures) - 1, 0), plan.starts - 1)
    if plan.engine and len(alone) < len(figures) and None not in alone:
        return Step(purpose="alone", concurrency=found.concurrency, senders=found.senders, start=start)
    wants_check = plan.cross_check and checks.count(None) < CROSS_CHECK_FAILURES
    if wants_check and len(checks) - checks.count(None) < len(figures):
        return Step(purpose="cross_check", concurrency=found.concurrency, senders=1, start=start)
    least = max(plan.figure_rounds, plan.starts)
    settled = len(figures) >= least and (
        _fit(plan, done) or len(figures) >= max(least, FIGURE_ROUNDS_MOST) or plan.figure_rounds == 1
    )
    if settled:
        return None
    start = min(len(figures), plan.starts - 1)
    return Step(purpose="figure", concurrency=found.concurrency, senders=found.senders, start=start)


def _fit(plan: Plan, done: Sequence[Done]) -> bool:
    """Whether the generators agree and the server does not beat its own engine, by the medians of all windows."""
    figure, other = (
        [rate for d in done if d.step.purpose == purpose for rate in d.rates] for purpose in ("figure", "cross_check")
    )
    agree = not other or abs(gain(statistics.median(figure), statistics.median(other))) <= plan.agree
    efficiency = serving_efficiency(done)
    return agree and (efficiency is None or efficiency <= CEILING)


def serving_efficiency(done: Sequence[Done]) -> float | None:
    """Served rate over that of the engine alone: the median over rounds, each of which measures both in turn."""
    pairs = zip(_rates(done, "figure"), _rates(done, "alone"), strict=False)
    ratios = [figure / alone for figure, alone in pairs if figure and alone]
    return statistics.median(ratios) if ratios else None


def _rates(done: Sequence[Done], purpose: Purpose) -> list[float | None]:
    return [d.items_per_s for d in done if d.step.purpose == purpose]
