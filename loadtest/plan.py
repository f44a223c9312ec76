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
#: The search compares its loads at equal engine speed: it needs no more bins than can be judged at all.
SEARCH_BINS = 60
#: A load lasts this many windows: half a window for what the steady-state test cuts off.
SLACK = 1.5
#: No load lasts longer than this, however slow the model; its record then has fewer bins, and says so.
LOAD_LIMIT_SECONDS = 120.0


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

    def record_for(self, batch_period_s: float, bins: int = BINS, slack: float = SLACK) -> float:
        """Seconds of one load: `slack` windows, and enough bins for the steady-state test."""
        binned = bins * max(BIN_SECONDS, batch_period_s)
        return min(max(binned, slack * self.window_for(batch_period_s)) + 1.5, LOAD_LIMIT_SECONDS)


def read_plan(file: Path | None) -> LoadPlan:
    """The shipped plan with the user's `file` laid over it; UsageError names file and key."""
    shipped = codec.read_toml(SHIPPED, "--loads")
    if file is None:
        return codec.build(LoadPlan, shipped, where="loads.toml")
    return codec.build(LoadPlan, {**shipped, **codec.read_toml(file, "--loads")}, where=str(file))
