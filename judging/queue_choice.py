"""Which of the measured queue policies serves users best: the recommendation for max_queue_size and the timeout.

Reads the judged points of every policy; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brim.records import OverloadPoint
from judging.queue_limits import InTime, Limits, Proposal
from judging.tolerances import LIMITS_GAIN, LIMITS_MAY_COST

#: Offered rates are drawn: those meant to be the rate itself may lie a little above it, the next are a quarter above.
AT_THE_RATE = 1.12

#: Limits that keep less than this part of the goodput that was simulated do not work as they are understood.
KEPT_LEAST = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommended:
    """The limits that serve users best, and why."""

    limits: Limits
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Goodput:
    """Sums over the offered rates that every policy was measured at."""

    up_to_rate: float
    beyond: float
    highest: float  # at the highest offered rate


def choose(
    proposal: Proposal, policies: Mapping[str, Limits], points: Sequence[OverloadPoint], rate: float
) -> Recommended:
    """Of the policies by name (the first is as served) the one with the most goodput beyond the rate (items/s).

    It may cost 1% of the goodput up to the rate, and must gain 3% beyond it on the server as it is. Where only that one
    could be measured, the simulator decides.
    """
    offered = [one for one in _common(points, policies) if one > 0]
    if len(policies) < 2 or not any(one > AT_THE_RATE * rate for one in offered):
        limits = _unmeasured(proposal).limits
        return Recommended(limits=limits, why=f"{proposal.why}; {limits.words}: simulated, not measured")
    found = {name: _goodput(points, name, offered, rate) for name in policies}
    as_served = next(iter(policies))
    fair = [n for n in policies if found[n].up_to_rate >= (1 - LIMITS_MAY_COST) * found[as_served].up_to_rate]
    best = max(fair, key=lambda name: found[name].beyond)
    if found[best].beyond <= (1 + LIMITS_GAIN) * found[as_served].beyond:
        best = as_served
    return Recommended(
        limits=policies[best], why="; ".join([proposal.why, *_measured(proposal, found, policies, offered, best, fair)])
    )


def _unmeasured(proposal: Proposal) -> InTime:
    """A timeout alone where it is foreseen to do as well: Triton 2.51 stalls behind a full queue.

    Its batcher, waiting for an instance, wakes when a request is admitted or after half a second; a full queue admits
    none. Batches of 25 ms then began 500 ms apart.
    """
    limited, timed = proposal.limited, proposal.timed
    if timed is None or timed.beyond < (1 - LIMITS_MAY_COST) * limited.beyond:
        return limited
    return timed if timed.at_rate >= (1 - LIMITS_MAY_COST) * limited.at_rate else limited


def _common(points: Sequence[OverloadPoint], policies: Mapping[str, Limits]) -> list[float]:
    """Offered rates at which every policy has a point: all meet the same arrivals, so they are equal."""
    rates = [{point.offered for point in points if point.policy == name} for name in policies]
    return sorted(set.intersection(*rates))


def _goodput(points: Sequence[OverloadPoint], name: str, offered: Sequence[float], rate: float) -> _Goodput:
    good = {point.offered: point.good for point in points if point.policy == name}
    return _Goodput(
        up_to_rate=sum(good[one] for one in offered if one <= AT_THE_RATE * rate),
        beyond=sum(good[one] for one in offered if one > AT_THE_RATE * rate),
        highest=good[offered[-1]],
    )


def _falls_short(proposal: Proposal, limits: Limits, share: float) -> bool:
    foreseen = next((one for one in (proposal.limited, proposal.timed) if one and one.limits == limits), None)
    return foreseen is not None and share < KEPT_LEAST * foreseen.beyond


def _measured(
    proposal: Proposal,
    found: Mapping[str, _Goodput],
    policies: Mapping[str, Limits],
    offered: Sequence[float],
    best: str,
    fair: Sequence[str],
) -> list[str]:
    """What decided, in words."""
    ranked = sorted(found, key=lambda name: -found[name].highest)
    kept = ", ".join(f"{found[name].highest:.4g} under {name} ({policies[name].words})" for name in ranked)
    said = [f"measured at {offered[-1]:.4g} items/s, in time are {kept}", f"{best} is recommended"]
    short = [name for name in ranked if _falls_short(proposal, policies[name], found[name].highest / offered[-1])]
    if short:
        said.append(
            f"{', '.join(short)} kept less than half of what was simulated: the sign of a batcher that only wakes when "
            "a request is admitted, and a full queue admits none"
        )
    costly = [name for name in policies if name not in fair]
    if costly:
        said.append(f"{', '.join(costly)} cost more than {LIMITS_MAY_COST:.0%} of the goodput up to the rate")
    return said
