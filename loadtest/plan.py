"""The load plan: loads.toml read strictly into one record, and how long one load must last."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from brim import codec
from brim.errors import InvalidRecord

SHIPPED = Path(__file__).with_name("loads.toml")
#: MSER-5 wants this many bins of at least BIN_SECONDS (docs/architecture.md, constants).
BINS = 100
BIN_SECONDS = 0.1
#: No load lasts longer than this, however slow the model; its record then has fewer bins, and says so.
LOAD_LIMIT_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How long one load must last before it is judged."""

    bins: int  # for the steady-state test
    slack: float  # windows: a whole one, and room for what the steady-state test cuts off
    longer_s: float  # it goes on for so long where its record does not suffice yet


#: The load point's figure rests on a record that shows its steady state; each look at it must bring something new.
FIGURE = Length(bins=BINS, slack=1.5, longer_s=3.0)
#: The search compares its loads at equal engine speed: one window behind a cut that can be judged at all (50 bins, and
#: a batch or two lost at the ends), and a second more until it fits.
SEARCH = Length(bins=55, slack=1.15, longer_s=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """loads.toml."""

    window_seconds: float
    window_batches: int
    window_limit_seconds: float
    request_timeout_seconds: float
    drain_seconds: float
    items_per_request: int
    inputs: int
    seed: int
    samples: int
    max_senders: int
    max_concurrency: int
    rounds: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name != "seed" and getattr(self, field.name) <= 0:
                raise InvalidRecord(f"{field.name} is {getattr(self, field.name)}, must be > 0")
        if self.window_limit_seconds < self.window_seconds:
            raise InvalidRecord(
                f"window_limit_seconds {self.window_limit_seconds} is shorter than window_seconds {self.window_seconds}"
            )

    @property
    def longest_drain_s(self) -> float:
        """How long the last requests may go on: at least their own deadline, else one load's end in the next."""
        return max(self.drain_seconds, self.request_timeout_seconds)

    def window_for(self, batch_period_s: float) -> float:
        """Seconds of one window of a server that ends a batch every `batch_period_s`."""
        return min(max(self.window_seconds, self.window_batches * batch_period_s), self.window_limit_seconds)

    def record_for(self, batch_period_s: float, length: Length) -> float:
        """Seconds of one load: so many windows, and enough bins for the steady-state test."""
        binned = length.bins * max(BIN_SECONDS, batch_period_s)
        return min(max(binned, length.slack * self.window_for(batch_period_s)) + 1.5, LOAD_LIMIT_SECONDS)


def read_plan(file: Path | None) -> LoadPlan:
    """The shipped plan with the user's `file` laid over it; UsageError names file and key."""
    shipped = codec.read_toml(SHIPPED, "--loads")
    if file is None:
        return codec.build(LoadPlan, shipped, where="loads.toml")
    return codec.build(LoadPlan, {**shipped, **codec.read_toml(file, "--loads")}, where=str(file))
