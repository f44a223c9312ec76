"""The search for the load point: the ladder of doublings, one more sender at its top, the same items with fewer bytes.

Pure decisions over what has been measured so far; each gain is repeated before it is believed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from experiments.measure.experiment import Done, Plan, Purpose, Step
from judging.tolerances import FULL_BUSY, PLATEAU, RUNS_ON
from judging.verdict import gain, load_point

#: Batches are equal enough to compare the engine's time per item.
EQUAL_BATCHES = 0.02


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


def next_load(plan: Plan, done: Sequence[Done]) -> Step | None:
    """The search's next load, or None once it has nothing more to ask."""
    points = _by_point(done)
    return _ladder(plan, points) or _transfer(plan, done, points)


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


def _ladder(plan: Plan, points: Points) -> Step | None:
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


def _sender_gain(plan: Plan, points: Points, senders: int) -> float | None:
    """What one sender more than so many gained at the top of their ladder."""
    climbed = _climbed(plan, points, senders)
    return _gain(points, At(climbed[-1], senders), At(climbed[-1], senders + 1)) if climbed else None
