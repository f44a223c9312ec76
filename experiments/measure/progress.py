"""How far a measurement is: the share of the whole that is done, from how long its steps took so far."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """The steps of all targets of one command; `update` gets a share (0 to 1) and what is going on."""

    update: Callable[[float, str], None]
    targets: int = 1
    clock: Callable[[], float] = time.monotonic
    _started_s: float = field(init=False)
    _step_started_s: float = field(init=False)
    _steps_s: list[float] = field(default_factory=list)
    _of_target: int = 0  # steps that this target has made
    _ended: int = 0  # targets

    def __post_init__(self) -> None:
        self._started_s = self._step_started_s = self.clock()

    def stepping(self, text: str, wanted_s: float, further: int) -> None:
        """In the middle of a step that wants so long, with `further` steps of this target foreseen behind it."""
        now = self.clock()
        own = max(0.0, wanted_s - (now - self._step_started_s))
        typical_s = statistics.mean(self._steps_s) if self._steps_s else wanted_s
        others = (self.targets - self._ended - 1) * (self._of_target + 1 + further)
        left_s = own + typical_s * (further + others)
        elapsed_s = now - self._started_s
        self.update(elapsed_s / (elapsed_s + left_s) if elapsed_s + left_s else 0.0, text)

    def step_ended(self) -> None:
        now = self.clock()
        self._steps_s.append(now - self._step_started_s)
        self._step_started_s = now
        self._of_target += 1

    def target_ended(self) -> None:
        self._step_started_s = self.clock()
        self._of_target = 0
        self._ended += 1
