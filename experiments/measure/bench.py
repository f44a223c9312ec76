"""What one measurement has at hand, and what has come of it so far."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from brim.errors import Interrupted
from brim.records import Protocol, Run, Sender, Target
from brim.say import Say
from experiments.measure.experiment import Done, Plan
from experiments.measure.gathered import Alone, MeasuredLoad
from experiments.measure.payloads import Payloads
from experiments.measure.progress import Progress
from experiments.measure.request import Request
from loadtest.control import Control
from loadtest.driver import Driver
from loadtest.statistics_reader import StatisticsReader


@dataclass(slots=True, kw_only=True)
class Bench:
    """The state of one measurement."""

    run: Run
    folder: Path
    out: Path
    target: Target
    request: Request
    say: Say
    progress: Progress
    plan: Plan
    control: Control
    reader: StatisticsReader
    payloads: Payloads
    own: Driver
    other: Driver
    sender: Sender
    protocol: Protocol
    no_cross_check: str | None  # why the other generator cannot run
    alone: Alone
    held: ExitStack  # ends with the measurement
    loads: list[MeasuredLoad] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)
    workers: int = 0
    senders: int = 1  # that the rate at the SLO is looked for with: as many as the peak needed
    start: int = 0  # of the server
    period_s: float | None = None  # from batch to batch, as last seen
    interrupted: Interrupted | None = None
    lost: str | None = None
