"""Which load comes next: pure decisions over what has been measured so far.

Without a concurrency: the two points of the search (full, twice full) and one more sender, each repeated before a
gain is believed; then the figure at the lowest point on the plateau, Locust and the cross-check in turn.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from judging.tolerances import PLATEAU

Purpose = Literal["search", "one_more_sender", "figure", "cross_check"]

#: Windows of each generator at the figure's point: two, so that a median is compared and not a single stretch.
FIGURE_LOADS = 2
#: perf_analyzer cannot be told to go on when its record holds no steady window yet; once is bad luck.
CROSS_CHECK_FAILURES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One load to send."""

    purpose: Purpose
    concurrency: int
    senders: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One load that has been sent; `items_per_s` is None if it gave no window."""

    step: Step
    items_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the user asked for, and what the target is."""

    full: int  # 2 x max_batch x instances, in requests
    concurrency: int | None  # one point instead of a search
    senders: int  # to begin with
    max_senders: int
    rounds: int
    cross_check: bool
    figure_loads: int = FIGURE_LOADS


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the search says so far."""

    doubling_gain: float | None  # twice full over full; None = not measured
    sender_gain: float | None  # one more sender at twice full
    concurrency: int  # the load point
    senders: int


def rate(done: Sequence[Done], *, concurrency: int, senders: int) -> float | None:
    """The median rate of the search's loads at one point, or None if there is none."""
    rates = [
        d.items_per_s
        for d in done
        if d.items_per_s is not None
        and d.step.purpose in ("search", "one_more_sender")
        and (d.step.concurrency, d.step.senders) == (concurrency, senders)
    ]
    return statistics.median(rates) if rates else None


def gain(done: Sequence[Done], base: tuple[int, int], more: tuple[int, int]) -> float | None:
    """How much more the second (concurrency, senders) gives than the first, as a fraction; None if one is missing."""
    first = rate(done, concurrency=base[0], senders=base[1])
    second = rate(done, concurrency=more[0], senders=more[1])
    return None if first is None or second is None or first <= 0 else second / first - 1


def next_step(plan: Plan, done: Sequence[Done]) -> Step | None:
    """The next load, or None when all is measured. A load that gave no window ends the experiment."""
    if done and done[-1].items_per_s is None and done[-1].step.purpose != "cross_check":
        return None
    if plan.concurrency is None and (step := _search(plan, done)) is not None:
        return step
    found = findings(plan, done)
    return _figure(plan, done, found)


def _search(plan: Plan, done: Sequence[Done]) -> Step | None:
    """The search's next load: both points, then senders, one more each time; a gain must survive every round."""
    low, high, senders = plan.full, 2 * plan.full, plan.senders
    for _ in range(plan.max_senders):
        at_low, at_high = (low, senders), (high, senders)
        step = _settle(plan, done, at_low, at_high, "search")
        if step is not None:
            return step
        if senders + 1 > min(plan.max_senders, high):
            return None
        step = _settle(plan, done, at_high, (high, senders + 1), "one_more_sender")
        if step is not None:
            return step
        if (gain(done, at_high, (high, senders + 1)) or 0) <= PLATEAU:
            return None
        senders += 1
    return None


def _settle(
    plan: Plan, done: Sequence[Done], base: tuple[int, int], more: tuple[int, int], purpose: Purpose
) -> Step | None:
    """Measure base and more; while `more` seems to gain over the plateau, both again, up to plan.rounds times."""
    times = {at: _count(done, at) for at in (base, more)}
    if times[base] == 0:
        return Step(purpose="search", concurrency=base[0], senders=base[1])
    if times[more] == 0:
        return Step(purpose=purpose, concurrency=more[0], senders=more[1])
    if (gain(done, base, more) or 0) <= PLATEAU:
        return None
    if times[base] <= times[more] and times[base] < plan.rounds:
        return Step(purpose="search", concurrency=base[0], senders=base[1])
    if times[more] < plan.rounds:
        return Step(purpose=purpose, concurrency=more[0], senders=more[1])
    return None


def _count(done: Sequence[Done], at: tuple[int, int]) -> int:
    return sum(
        d.step.purpose in ("search", "one_more_sender") and (d.step.concurrency, d.step.senders) == at for d in done
    )


def findings(plan: Plan, done: Sequence[Done]) -> Found:
    """The load point, and the gains that the verdict rests on."""
    if plan.concurrency is not None:
        return Found(doubling_gain=None, sender_gain=None, concurrency=plan.concurrency, senders=plan.senders)
    low, high, senders = plan.full, 2 * plan.full, plan.senders
    sender_gain = gain(done, (high, senders), (high, senders + 1))
    while sender_gain is not None and sender_gain > PLATEAU and _count(done, (high, senders + 2)):
        senders += 1
        sender_gain = gain(done, (high, senders), (high, senders + 1))
    doubling = gain(done, (low, senders), (high, senders))
    on_plateau = doubling is not None and doubling <= PLATEAU
    return Found(
        doubling_gain=doubling, sender_gain=sender_gain, concurrency=low if on_plateau else high, senders=senders
    )


def _figure(plan: Plan, done: Sequence[Done], found: Found) -> Step | None:
    """Locust and the cross-check in turn at the load point; a cross-check that failed twice is given up."""
    figures = sum(d.step.purpose == "figure" for d in done)
    checks = [d.items_per_s for d in done if d.step.purpose == "cross_check"]
    wants_check = plan.cross_check and checks.count(None) < CROSS_CHECK_FAILURES
    if wants_check and len(checks) - checks.count(None) < figures:
        return Step(purpose="cross_check", concurrency=found.concurrency, senders=1)
    if figures < plan.figure_loads:
        return Step(purpose="figure", concurrency=found.concurrency, senders=found.senders)
    return None
