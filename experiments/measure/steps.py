"""Which step comes next: pure decisions over what has been measured so far.

Without a concurrency: the ladder (1, 2, 4, … to full batches, then on while a doubling gains), one more sender, the
same items with fewer bytes; each gain is repeated before it is believed. Then rounds at the load point: Locust for the
figure, the engine alone, the other generator; each on a server start of its own where several are asked for.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

from judging.tolerances import CEILING, FULL_BUSY, PLATEAU, RUNS_ON
from judging.verdict import gain, load_point

Purpose = Literal["search", "one_more_sender", "transfer", "figure", "alone", "cross_check"]

#: Rounds at the load point: two, so that medians are compared and not single stretches …
FIGURE_ROUNDS = 2
#: … and up to four while the generators or the engine alone do not fit, as on a machine whose speed drifts.
FIGURE_ROUNDS_MOST = 4
#: perf_analyzer cannot be told to go on when its record holds no steady window yet; once is bad luck.
CROSS_CHECK_FAILURES = 2
#: Batches are equal enough to compare the engine's time per item.
EQUAL_BATCHES = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One load to send, or (`alone`) one run of the engine without load."""

    purpose: Purpose
    concurrency: int
    senders: int
    start: int = 0  # of the server; a higher one than the last step's asks for a restart


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One step that was made, with the items/s of each of its windows."""

    step: Step
    rates: tuple[float, ...]
    busy_s_per_item: float | None = None  # the engine's own time, from the server's batch statistics
    effective_batch: float | None = None
    busy_share: float | None = None

    @property
    def items_per_s(self) -> float | None:
        """The median of its windows; None if it gave none."""
        return statistics.median(self.rates) if self.rates else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the user asked for, and what the target is; concurrencies in requests."""

    full: int  # 2 x max_batch x instances
    least: int = 1  # the ladder begins here …
    most: int = 4096  # … and goes no further than this
    concurrency: int | None  # one point instead of a search
    senders: int  # to begin with
    max_senders: int
    rounds: int
    cross_check: bool
    engine: bool  # whether the engine can be run alone
    transfer: bool = False  # whether the same items can be sent with fewer bytes
    agree: float  # how far two generators may be apart
    figure_rounds: int = FIGURE_ROUNDS
    starts: int = 1  # of the server, over which the figure is taken

    @property
    def base(self) -> int | None:
        """Where the ladder's doublings begin to count; None if it ends before batches can be full."""
        base = max(self.full, self.least)
        return base if base <= self.most else None

    @property
    def low(self) -> tuple[int, ...]:
        """The rungs below: measured once, for the curve. Two half-filled batches alternate there and decide nothing."""
        below, rung = [], self.least
        while rung < self.full and rung <= self.most:
            below.append(rung)
            rung *= 2
        if self.base is None and below[-1:] != [self.most]:
            below.append(self.most)
        return tuple(below)

    @property
    def high(self) -> tuple[int, ...]:
        """The rungs from the base on, as far as the bound lets them go."""
        rungs = [] if self.base is None else [self.base]
        while rungs and 2 * rungs[-1] <= self.most:
            rungs.append(2 * rungs[-1])
        return tuple(rungs)


class At(NamedTuple):
    """Where a search load was: what may be compared with what."""

    concurrency: int
    senders: int
    transfer: bool = False


Points: TypeAlias = Mapping[At, Sequence[Done]]  # the search's loads that gave a rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the search says so far."""

    doubling_gain: float | None  # of the last doubling; None = not measured
    sender_gain: float | None  # one more sender at the top of the ladder
    concurrency: int  # the load point
    senders: int
    lower: int | None = None  # the last doubling went from here …
    top: int | None = None  # … to here
    transfer_gain: float | None = None  # the same items with fewer bytes, at the load point


def next_step(plan: Plan, done: Sequence[Done]) -> Step | None:
    """The next step, or None when all is measured. A load that gave no window ends the experiment."""
    if done and done[-1].items_per_s is None and done[-1].step.purpose not in ("alone", "cross_check", "transfer"):
        return None
    if plan.concurrency is None:
        points = _by_point(done)
        if (step := _search(plan, points) or _transfer(plan, done, points)) is not None:
            return step
    return _figure(plan, done, findings(plan, done))


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


def point_gain(done: Sequence[Done], base: At, more: At) -> float | None:
    """How much more the second point of the search gives than the first, as a fraction; None if one is missing.

    Medians are compared at equal engine speed where the batches were equal: rate x engine time per item. A machine
    whose speed drifts changes both factors by the same amount, and a client that is too slow shows as an engine
    that waits or as smaller batches, never as a slower engine.
    """
    return _gain(_by_point(done), base, more)


def _gain(points: Points, base: At, more: At) -> float | None:
    first, second = points.get(base), points.get(more)
    if not first or not second:
        return None
    # Fewer bytes take less of the engine's own time, too (its copy in): that is part of what they gain.
    value = _at_engine_speed if not more.transfer and _comparable([*first, *second]) else _rate
    return gain(statistics.median(map(value, first)), statistics.median(map(value, second)))


def _by_point(done: Sequence[Done]) -> Points:
    points = dict[At, list[Done]]()
    for d in done:
        if d.step.purpose in ("search", "one_more_sender", "transfer") and d.rates:
            at = At(d.step.concurrency, d.step.senders, d.step.purpose == "transfer")
            points.setdefault(at, []).append(d)
    return points


def _comparable(loads: Sequence[Done]) -> bool:
    """Equal batches on an engine that hardly idles: else its time per item tells how it was disturbed."""
    sizes = [d.effective_batch for d in loads if d.effective_batch and d.busy_s_per_item]
    busy = all((d.busy_share or 0.0) >= RUNS_ON for d in loads)
    return busy and len(sizes) == len(loads) and max(sizes) <= (1 + EQUAL_BATCHES) * min(sizes)


def _rate(d: Done) -> float:
    return d.items_per_s or 0.0


def _at_engine_speed(d: Done) -> float:
    return _rate(d) * (d.busy_s_per_item or 0.0)


# ---------------------------------------------------------------------------- the search


def _search(plan: Plan, points: Points) -> Step | None:
    """The ladder's next load, then one more sender at its top; a gain of that climbs again with one more."""
    for rung in plan.low:
        at = At(rung, min(plan.senders, rung))
        if at not in points:
            return _step("search", at)
    for senders in range(plan.senders, max(plan.max_senders, plan.senders + 1)):
        if (step := _climb(plan, points, senders)) is not None:
            return step
        climbed = _climbed(plan, points, senders)
        if not climbed or senders + 1 > min(plan.max_senders, climbed[-1]):
            return None
        here, further = At(climbed[-1], senders), At(climbed[-1], senders + 1)
        if (step := _settle(plan, points, here, further, "one_more_sender")) is not None:
            return step
        if (_gain(points, here, further) or 0) <= PLATEAU:
            return None
    return None


def _climb(plan: Plan, points: Points, senders: int) -> Step | None:
    """The next load of the doublings with so many senders; None when one gained nothing, or at the bound."""
    rungs = _rungs(plan, senders)
    for low, high in pairwise(rungs):
        base, more = At(low, senders), At(high, senders)
        if (step := _settle(plan, points, base, more, "search")) is not None:
            return step
        if (_gain(points, base, more) or 0) <= PLATEAU:
            return None
    only = At(rungs[0], senders) if rungs else None
    return _step("search", only) if only is not None and only not in points else None


def _rungs(plan: Plan, senders: int) -> list[int]:
    """The doublings that so many senders can share."""
    return [rung for rung in plan.high if rung >= senders]


def _climbed(plan: Plan, points: Points, senders: int) -> list[int]:
    """The rungs that the doublings reached with so many senders."""
    reached: list[int] = []
    for rung in _rungs(plan, senders):
        if At(rung, senders) not in points:
            break
        reached.append(rung)
        if len(reached) > 1 and (_gain(points, At(reached[-2], senders), At(rung, senders)) or 0) <= PLATEAU:
            break
    return reached


def _transfer(plan: Plan, done: Sequence[Done], points: Points) -> Step | None:
    """The same items with fewer bytes, where the engine has time left: if that gains, the bytes were the limit."""
    if not plan.transfer:
        return None
    found = findings(plan, done)
    at = At(found.concurrency, found.senders)
    shares = [d.busy_share for d in points.get(at, ()) if d.busy_share is not None]
    failed = any(d.step == _step("transfer", at) and not d.rates for d in done)
    if failed or not shares or statistics.median(shares) >= FULL_BUSY:
        return None
    return _settle(plan, points, at, at._replace(transfer=True), "transfer")


def _settle(plan: Plan, points: Points, base: At, more: At, purpose: Purpose) -> Step | None:
    """Measure base and more; while `more` seems to gain over the plateau, both again, up to plan.rounds times."""
    at_base, at_more = len(points.get(base, ())), len(points.get(more, ()))
    if not at_base:
        return _step("search", base)
    if not at_more:
        return _step(purpose, more)
    if (_gain(points, base, more) or 0) <= PLATEAU:
        return None
    if at_base <= at_more and at_base < plan.rounds:
        return _step("search", base)
    return _step(purpose, more) if at_more < plan.rounds else None


def _step(purpose: Purpose, at: At) -> Step:
    return Step(purpose=purpose, concurrency=at.concurrency, senders=at.senders)


def findings(plan: Plan, done: Sequence[Done]) -> Found:
    """The load point, and the gains that the verdict rests on."""
    if plan.concurrency is not None:
        return Found(doubling_gain=None, sender_gain=None, concurrency=plan.concurrency, senders=plan.senders)
    points, senders = _by_point(done), plan.senders
    sender_gain = _sender_gain(plan, points, senders)
    while sender_gain is not None and sender_gain > PLATEAU and _sender_gain(plan, points, senders + 1) is not None:
        senders += 1
        sender_gain = _sender_gain(plan, points, senders)
    climbed = _climbed(plan, points, senders)
    if not climbed:
        return Found(doubling_gain=None, sender_gain=None, concurrency=(plan.high or plan.low)[-1], senders=senders)
    height, relative = 1.0, {climbed[0]: 1.0}
    for low, high in pairwise(climbed):
        height *= 1.0 + (_gain(points, At(low, senders), At(high, senders)) or 0.0)
        relative[high] = height
    lower = climbed[-2] if len(climbed) > 1 else None
    at_top = At(climbed[-1], senders)
    point = At(load_point(relative), senders)
    return Found(
        doubling_gain=None if lower is None else _gain(points, At(lower, senders), at_top),
        sender_gain=sender_gain,
        concurrency=point.concurrency,
        senders=senders,
        lower=lower,
        top=at_top.concurrency,
        transfer_gain=_gain(points, point, point._replace(transfer=True)),
    )


def _sender_gain(plan: Plan, points: Points, senders: int) -> float | None:
    """What one sender more than so many gained at the top of their ladder."""
    climbed = _climbed(plan, points, senders)
    return _gain(points, At(climbed[-1], senders), At(climbed[-1], senders + 1)) if climbed else None


# ---------------------------------------------------------------------------- rounds at the load point


def _figure(plan: Plan, done: Sequence[Done], found: Found) -> Step | None:
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
