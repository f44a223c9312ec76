"""The trials of a search for the rate at an SLO: sent one by one, and what says that one tells nothing of the server.

Loads come from a Loader, time from a clock; writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from brim.records import Slo, Status
from experiments.measure.slo_profile import End, Loader, Sought
from judging.slo_observed import Numbers, ended_otherwise, late_words, latencies
from judging.slo_trials import Trial
from judging.tolerances import FAILING

#: What a load takes besides its own seconds: its processes start, the last answers come.
AROUND_S = 2.5


@dataclass(slots=True, kw_only=True)
class Trials:
    """What one search has sent, and how much longer it may send; `late` says how the client was with the newest."""

    loader: Loader
    sought: Sought
    progress: Callable[[str], None]
    clock: Callable[[], float]
    started_s: float
    sent: list[Trial] = field(default_factory=list)
    late: str = ""
    _statuses: list[npt.NDArray[np.uint8]] = field(default_factory=list)

    @property
    def spent_s(self) -> float:
        return self.clock() - self.started_s

    def left_s(self) -> float:
        """Seconds that a load may still send."""
        return self.sought.seconds - self.spent_s - AROUND_S

    @property
    def seed(self) -> int:
        """A new pattern of arrivals for each trial, the same ones in each search."""
        return self.sought.seed + 1 + len(self.sent)

    def send(self, offsets_ns: Numbers, slo: Slo, *, rate: float, warm: float, seconds: float, segments: int) -> bool:
        """One trial; False if the client was late with it: then it says nothing of the server, and is left out."""
        self.progress(f"trial {len(self.sent) + 1}: {rate:.4g} items/s for {seconds:.0f} s")
        seen = self.loader.open(offsets_ns, rate, seconds)
        status = seen.rows["status"]
        failed = float(np.mean(status == Status.FAILED)) if status.size else 0.0
        failing = failed > max(FAILING, slo.over_allowed)
        self.late = "" if failing else late_words(seen, slo)
        if self.late:
            self.late += self.sought.capped
            self.progress(f"    left out: {self.late}")
            return False
        trial = Trial(
            load=seen.load, rate=rate, warm_s=warm, seconds=seconds, offsets_s=offsets_ns / 1e9,
            latency_s=latencies(seen), segments=segments,
        )  # fmt: skip
        self.sent.append(trial)
        self._statuses.append(status)
        if failing:
            raise End("failing", f"at {rate:.4g} items/s {failed:.1%} of the requests failed")
        share = float(np.mean(trial.shares(slo)))
        self.progress(f"    {share:.2%} over {slo.limit_ms:g} ms (allowed {slo.over_allowed:.3g})")
        return True

    def refused(self, slo: Slo) -> str:
        """How many of all requests were rejected or failed, where that is more than the SLO allows; or nothing."""
        words = ended_otherwise(np.concatenate(self._statuses), above=slo.over_allowed) if self._statuses else ""
        return f"in the trials {words}" if words else ""
