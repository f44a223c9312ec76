"""Which loads show a server beyond its rate: steps from half to twice the rate, and a burst. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from brim.records import Slo, SloRate
from judging.overload import Burst
from judging.queue_limits import BEYOND, capacity_of, fitting_queue
from judging.slo_model import Model
from queueing.arrivals import highest_random_rate, poisson

#: Offered rates as multiples of the rate at the SLO.
RATIOS = (0.5, 0.8, 1.0, 1.25, 1.5, BEYOND)
#: The rate on either side of a burst: a server that is used as planned.
USUAL = 0.7
#: A stretch lasts for so many full batches, and for so many times the SLO, so that what overload does is not its
#: beginning; within these seconds.
STRETCH_BATCHES, STRETCH_LIMITS, STRETCH_LEAST_S, STRETCH_MOST_S = 60, 20, 3.0, 12.0
#: The first half of a stretch fills the queue and is not judged.
UNJUDGED = 0.5
#: A burst lasts for so many times the SLO: long enough for its backlog to be late; within these seconds.
BURST_LIMITS, BURST_LEAST_S, BURST_MOST_S = 5, 2.0, 5.0
#: After a burst the load goes on for so much longer than its backlog should take, by arithmetic; at most so long.
AFTER, AFTER_MOST_S = 1.5, 20.0
#: And so much longer than a recovery must last to count as one (judging.tolerances).
SETTLED_S, SETTLED_REQUESTS = 2.0, 40
#: In flight at most: all that a stretch piles up, and at least twice what a bounded queue holds, which must fill before
#: they are used up; but no more than this, as each may cost a connection.
ROOM, OUTSTANDING_MOST = 2, 2048

Offsets: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverloadPlan:
    """What is to be overloaded; rates in requests a second, each of one item as in the search before it."""

    slo: Slo
    rate_per_s: float  # that meets the SLO
    capacity_per_s: float
    batch_s: float  # of a full batch
    outstanding: int  # requests in flight at most
    seed: int
    most_per_s: float | None = None  # that may be sent to this host

    @property
    def stretch_s(self) -> float:
        wanted = max(STRETCH_BATCHES * self.batch_s, STRETCH_LIMITS * self.slo.limit_ms / 1e3)
        return min(max(wanted, STRETCH_LEAST_S), STRETCH_MOST_S)

    def allows(self, ratio: float) -> bool:
        return self.most_per_s is None or ratio * self.rate_per_s <= highest_random_rate(self.most_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One load to send."""

    name: str
    offsets_ns: Offsets
    rate_per_s: float  # on average
    seconds: float
    offered_per_s: float  # in the part that it is about
    burst: Burst | None = None


def plan_of(found: SloRate, model: Model, *, seed: int, most_per_s: float | None) -> OverloadPlan:
    """The plan for a server whose rate at the SLO was found."""
    plan = OverloadPlan(
        slo=found.slo,
        rate_per_s=found.items_per_s or 0.0,
        capacity_per_s=capacity_of(found),
        batch_s=model.full_batch_s,
        outstanding=1,
        seed=seed,
        most_per_s=most_per_s,
    )
    queued = fitting_queue(model, found.slo.limit_ms) + 2 * model.batcher.max_batch * model.batcher.instances
    piled_up = ceil(BEYOND * plan.rate_per_s * plan.stretch_s)
    return replace(plan, outstanding=min(max(ROOM * queued, piled_up), OUTSTANDING_MOST))


def loads(plan: OverloadPlan) -> list[Planned]:
    """Every load that each policy meets: the same arrivals for all."""
    steps = [_stretch(plan, ratio, plan.seed + n) for n, ratio in enumerate(RATIOS) if plan.allows(ratio)]
    return [*steps, _burst(plan, plan.seed + len(RATIOS))] if plan.allows(BEYOND) else steps


def judged_from_s(planned: Planned) -> float:
    return UNJUDGED * planned.seconds


def _stretch(plan: OverloadPlan, ratio: float, seed: int) -> Planned:
    rate = ratio * plan.rate_per_s
    return Planned(
        name=f"{ratio:g} x the rate",
        offsets_ns=poisson(rate, plan.stretch_s, seed),
        rate_per_s=rate,
        seconds=plan.stretch_s,
        offered_per_s=rate,
    )


def _burst(plan: OverloadPlan, seed: int) -> Planned:
    """Usual load, twice the rate for a while, and usual load until its backlog must be gone."""
    before_s = UNJUDGED * plan.stretch_s
    burst_s = min(max(BURST_LIMITS * plan.slo.limit_ms / 1e3, BURST_LEAST_S), BURST_MOST_S)
    pieces = [(USUAL, before_s), (BEYOND, burst_s), (USUAL, _after_s(plan, burst_s))]
    offsets, start_s = list[Offsets](), 0.0
    for n, (ratio, seconds) in enumerate(pieces):
        offsets.append(poisson(ratio * plan.rate_per_s, seconds, seed + n) + round(start_s * 1e9))
        start_s += seconds
    together = np.concatenate(offsets)
    return Planned(
        name=f"a burst of {burst_s:g} s at {BEYOND:g} x the rate",
        offsets_ns=together,
        rate_per_s=len(together) / start_s,
        seconds=start_s,
        offered_per_s=BEYOND * plan.rate_per_s,
        burst=Burst(from_s=before_s, until_s=before_s + burst_s),
    )


def _after_s(plan: OverloadPlan, burst_s: float) -> float:
    """Until a backlog of (arrivals - capacity) x the burst is served by what the usual load leaves free."""
    usual = USUAL * plan.rate_per_s
    backlog = max(0.0, BEYOND * plan.rate_per_s - plan.capacity_per_s) * burst_s
    clear_s = backlog / max(plan.capacity_per_s - usual, 0.05 * plan.capacity_per_s)
    return min(AFTER * clear_s + max(SETTLED_S, SETTLED_REQUESTS / usual), AFTER_MOST_S)
