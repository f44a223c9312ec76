"""What an experiment is made of: the steps that can be taken, what came of each, and the plan that they follow."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Literal

Purpose = Literal["search", "one_more_sender", "transfer", "figure", "alone", "cross_check"]

#: Rounds at the load point: two, so that medians are compared and not single stretches.
FIGURE_ROUNDS = 2


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
