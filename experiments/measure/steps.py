"""Which step comes next: pure decisions over what has been measured so far.

Without a concurrency: the two points of the search (full, twice full) and one more sender, each repeated before a
gain is believed. Then rounds at the load point: Locust for the figure, the engine alone, the other generator.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from judging.tolerances import CEILING, PLATEAU
from judging.verdict import gain, load_point

Purpose = Literal["search", "one_more_sender", "figure", "alone", "cross_check"]

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
    """One load to send, or (`alone`) one run of the engine without a server."""

    purpose: Purpose
    concurrency: int
    senders: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """One step that was made, with the items/s of each of its windows."""

    step: Step
    rates: tuple[float, ...]
    busy_s_per_item: float | None = None  # the engine's own time, from the server's batch statistics
    effective_batch: float | None = None

    @property
    def items_per_s(self) -> float | None:
        """The median of its windows; None if it gave none."""
        return statistics.median(self.rates) if self.rates else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the user asked for, and what the target is."""

    full: int  # 2 x max_batch x instances, in requests
    concurrency: int | None  # one point instead of a search
    senders: int  # to begin with
    max_senders: int
    rounds: int
    cross_check: bool
    engine: bool  # whether the engine can be run alone
    agree: float  # how far two generators may be apart
    figure_rounds: int = FIGURE_ROUNDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the search says so far."""

    doubling_gain: float | None  # twice full over full; None = not measured
    sender_gain: float | None  # one more sender at twice full
    concurrency: int  # the load point
    senders: int


At = tuple[int, int]  # (concurrency, senders)


def next_step(plan: Plan, done: Sequence[Done]) -> Step | None:
    """The next step, or None when all is measured. A load that gave no window ends the experiment."""
    if done and done[-1].items_per_s is None and done[-1].step.purpose not in ("alone", "cross_check"):
        return None
    if plan.concurrency is None and (step := _search(plan, done)) is not None:
        return step
    return _figure(plan, done, findings(plan, done))


def most_loads(*, single_point: bool, senders: int, max_senders: int, rounds: int) -> int:
    """How many loads there can be at the very most: the bound of what is sent to a host that is not ours."""
    at_point = 2 * FIGURE_ROUNDS_MOST + CROSS_CHECK_FAILURES
    return at_point if single_point else at_point + 3 * rounds * (max_senders - senders + 1)


def point_gain(done: Sequence[Done], base: At, more: At) -> float | None:
    """How much more the second point of the search gives than the first, as a fraction; None if one is missing.

    Medians are compared at equal engine speed where the batches were equal: rate x engine time per item. A machine
    whose speed drifts changes both factors by the same amount, and a client that is too slow shows as an engine
    that waits or as smaller batches, never as a slower engine.
    """
    first, second = _at(done, base), _at(done, more)
    if not first or not second:
        return None
    value = _at_engine_speed if _comparable([*first, *second]) else _rate
    return gain(statistics.median(map(value, first)), statistics.median(map(value, second)))


def _at(done: Sequence[Done], at: At) -> list[Done]:
    return [d for d in done if _is_at(d, at) and d.items_per_s is not None]


def _is_at(d: Done, at: At) -> bool:
    return d.step.purpose in ("search", "one_more_sender") and (d.step.concurrency, d.step.senders) == at


def _comparable(loads: Sequence[Done]) -> bool:
    sizes = [d.effective_batch for d in loads if d.effective_batch and d.busy_s_per_item]
    return len(sizes) == len(loads) and max(sizes) <= (1 + EQUAL_BATCHES) * min(sizes)


def _rate(d: Done) -> float:
    return d.items_per_s or 0.0


def _at_engine_speed(d: Done) -> float:
    return _rate(d) * (d.busy_s_per_item or 0.0)


def _search(plan: Plan, done: Sequence[Done]) -> Step | None:
    """The search's next load: both points, then senders, one more each time; a gain must survive every round."""
    low, high = plan.full, 2 * plan.full
    for senders in range(plan.senders, plan.max_senders + 1):
        at_low, at_high, further = (low, senders), (high, senders), (high, senders + 1)
        if (step := _settle(plan, done, at_low, at_high, "search")) is not None:
            return step
        if senders + 1 > min(plan.max_senders, low):
            return None
        if (step := _settle(plan, done, at_high, further, "one_more_sender")) is not None:
            return step
        if (point_gain(done, at_high, further) or 0) <= PLATEAU:
            return None
    return None


def _settle(plan: Plan, done: Sequence[Done], base: At, more: At, purpose: Purpose) -> Step | None:
    """Measure base and more; while `more` seems to gain over the plateau, both again, up to plan.rounds times."""
    at_base, at_more = len(_at(done, base)), len(_at(done, more))
    again_base = Step(purpose="search", concurrency=base[0], senders=base[1])
    again_more = Step(purpose=purpose, concurrency=more[0], senders=more[1])
    if not at_base:
        return again_base
    if not at_more:
        return again_more
    if (point_gain(done, base, more) or 0) <= PLATEAU:
        return None
    if at_base <= at_more and at_base < plan.rounds:
        return again_base
    return again_more if at_more < plan.rounds else None


def findings(plan: Plan, done: Sequence[Done]) -> Found:
    """The load point, and the gains that the verdict rests on."""
    if plan.concurrency is not None:
        return Found(doubling_gain=None, sender_gain=None, concurrency=plan.concurrency, senders=plan.senders)
    low, high, senders = plan.full, 2 * plan.full, plan.senders
    sender_gain = point_gain(done, (high, senders), (high, senders + 1))
    while sender_gain is not None and sender_gain > PLATEAU and _at(done, (high, senders + 2)):
        senders += 1
        sender_gain = point_gain(done, (high, senders), (high, senders + 1))
    doubling = point_gain(done, (low, senders), (high, senders))
    point = high if doubling is None else load_point({low: 1.0, high: 1.0 + doubling})
    return Found(doubling_gain=doubling, sender_gain=sender_gain, concurrency=point, senders=senders)


def _figure(plan: Plan, done: Sequence[Done], found: Found) -> Step | None:
    """The next step of a round at the load point; a cross-check that failed twice is given up."""
    figures, alone, checks = (_rates(done, purpose) for purpose in ("figure", "alone", "cross_check"))
    if plan.engine and len(alone) < len(figures) and None not in alone:
        return Step(purpose="alone", concurrency=found.concurrency, senders=found.senders)
    wants_check = plan.cross_check and checks.count(None) < CROSS_CHECK_FAILURES
    if wants_check and len(checks) - checks.count(None) < len(figures):
        return Step(purpose="cross_check", concurrency=found.concurrency, senders=1)
    settled = len(figures) >= plan.figure_rounds and (
        _fit(plan, done) or len(figures) >= max(plan.figure_rounds, FIGURE_ROUNDS_MOST) or plan.figure_rounds == 1
    )
    return None if settled else Step(purpose="figure", concurrency=found.concurrency, senders=found.senders)


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
