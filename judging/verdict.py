"""What a measurement is worth, by one order of precedence, and which load point its figure is for.

Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from brim.records import Verdict
from judging.tolerances import FAILING, PLATEAU


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that the verdict depends on."""

    aborted: bool = False  # a signal ended the measurement
    server_lost: bool = False
    not_ok_share: float = 0.0  # of the requests that the server had its chance to answer
    answered: bool = True  # any at all
    further_sender_gain: float | None = None  # of the last one-more-sender experiment; None = none was made
    throttled: bool = False  # the rate that the user allows was reached
    unstable: bool = False
    unstable_because: str = ""  # of an open loop
    single_point: bool = False  # one concurrency was asked for
    doubling_gain: float | None = None  # of the last doubling of the load; None = there was none
    short_of: int | None = None  # requests that fill the batches, where the user's bound ended the ladder below them


def verdict(facts: Facts) -> Verdict:
    """The first that applies, in this order; a plateau that nobody looked for is not claimed."""
    if facts.aborted:
        return Verdict.ABORTED
    if facts.server_lost:
        return Verdict.SERVER_LOST
    if facts.not_ok_share > FAILING:
        return Verdict.FAILING
    if facts.throttled or (facts.further_sender_gain is not None and facts.further_sender_gain > PLATEAU):
        return Verdict.CLIENT_LIMITED
    if facts.unstable:
        return Verdict.UNSTABLE
    if facts.single_point:
        return Verdict.POINT
    if facts.doubling_gain is None or facts.doubling_gain > PLATEAU:
        return Verdict.STILL_RISING
    return Verdict.SATURATED


def because(facts: Facts) -> str:
    """The verdict's own reason, in words."""
    return {
        Verdict.ABORTED: "a signal ended it",
        Verdict.SERVER_LOST: "the server went away or restarted",
        Verdict.FAILING: f"{facts.not_ok_share:.1%} of the requests were not ok (more than {FAILING:.0%})"
        if facts.answered
        else "no request was answered",
        Verdict.CLIENT_LIMITED: "the rate that you allow to this host was reached"
        if facts.throttled
        else f"a further sender still gained {facts.further_sender_gain or 0.0:+.1%}",
        Verdict.UNSTABLE: facts.unstable_because or "the rate reached no steady state",
        Verdict.POINT: "one load point was asked for: no plateau is claimed",
        Verdict.STILL_RISING: _rising(facts),
        Verdict.SATURATED: f"twice the load gained {facts.doubling_gain or 0.0:+.1%} (at most {PLATEAU:.0%})",
    }[verdict(facts)]


def gain(before: float, after: float) -> float:
    """How much more `after` is, as a share of `before`; anything gained on nothing is infinite."""
    if before <= 0:
        return float("inf") if after > 0 else 0.0
    return after / before - 1


def load_point(items_per_s: Mapping[int, float]) -> int:
    """The lowest concurrency within 3% of the best; `items_per_s` maps concurrency to rate, not empty."""
    best = max(items_per_s.values())
    return min(concurrency for concurrency, rate in items_per_s.items() if gain(rate, best) <= PLATEAU)


def _rising(facts: Facts) -> str:
    if facts.short_of is not None:
        return f"the ladder ended below full batches, which need {facts.short_of} in flight"
    if facts.doubling_gain is None:
        return "the load was never doubled, so no plateau is known"
    return f"the last doubling of the load still gained {facts.doubling_gain:+.1%}"
