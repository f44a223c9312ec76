"""What the log of a known server says of a stretch of load: the truth that generators are held against. Pure.

Reads executions (start, end, items by CLOCK_MONOTONIC) as the instances of a known server wrote them; no figure here
comes from a client, which only names the stretch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

#: start_ns, end_ns, items of each execution of one instance, by start.
Executions: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What a known server executed; instances never wait for each other."""

    instances: tuple[Executions, ...]

    @classmethod
    def of(cls, by_instance: Mapping[str, Sequence[tuple[int, int, int]]]) -> Log:
        """From what serve.executions reads."""
        logs = (np.array(lines, dtype=np.int64).reshape(-1, 3) for lines in by_instance.values())
        return cls(instances=tuple(log[np.argsort(log[:, 0], kind="stable")] for log in logs))

    def ended(self, after_ns: int, until_ns: int) -> Executions:
        """The executions of all instances that ended in (after_ns, until_ns], by start."""
        together = np.concatenate([np.empty((0, 3), np.int64), *self.instances])
        inside = together[(together[:, 1] > after_ns) & (together[:, 1] <= until_ns)]
        return inside[np.argsort(inside[:, 0], kind="stable")]


def rate(log: Log, start_ns: int, end_ns: int) -> float:
    """Items a second; an execution that straddles an edge counts by its share of time inside."""
    items = 0.0
    for executions in log.instances:
        began, ended, size = executions.T
        inside = np.minimum(ended, end_ns) - np.maximum(began, start_ns)
        items += float((size * np.clip(inside, 0, None) / np.maximum(ended - began, 1)).sum())
    return items / ((end_ns - start_ns) / 1e9)


def full_rate(log: Log, start_ns: int, end_ns: int, max_batch: int) -> float | None:
    """k B / P: P is the mean time from the start of a full batch to the next start on the same instance.

    A period that straddles an edge counts by its share inside. None where an instance had no full batch in the
    stretch, as its period is then not known.
    """
    total = 0.0
    for executions in log.instances:
        full = executions[:-1, 2] == max_batch
        began, followed = executions[:-1, 0][full], executions[1:, 0][full]
        inside = np.clip(np.minimum(followed, end_ns) - np.maximum(began, start_ns), 0, None)
        if not inside.any():
            return None
        periods = float((inside / (followed - began)).sum())
        total += max_batch * periods / (float(inside.sum()) / 1e9)
    return total if log.instances else None


def mean_batch(log: Log, after_ns: int, until_ns: int) -> float | None:
    """Items of a batch, over those that ended in (after_ns, until_ns]; None where none did."""
    sizes = log.ended(after_ns, until_ns)[:, 2]
    return float(sizes.mean()) if sizes.size else None


def latency_ms(log: Log, start_ns: int, end_ns: int, *, requests: int, items_per_request: int) -> float | None:
    """What so many requests in flight, each sent as soon as the last was answered, must wait on average: N / X.

    X is the log's rate. What the client spends between an answer and the next request is in it: it knows no better.
    """
    items_per_s = rate(log, start_ns, end_ns)
    return 1e3 * requests * items_per_request / items_per_s if items_per_s > 0 else None
