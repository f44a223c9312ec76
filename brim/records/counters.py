"""Counters: what a server's statistics say, cumulative in a read, their difference in a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCount:
    """Counters of one composing model of an ensemble: cumulative in a read, their difference in a window."""

    inference_count: int
    execution_count: int
    success_count: int
    queue_ns: int
    busy_ns: int
    instances: int = 1

    def busy_share(self, seconds: float) -> float:
        return self.busy_ns / (self.instances * seconds * 1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """The GPUs together, from Triton's metrics: mean utilization, sums of the rest; None = not told, or no number."""

    utilization: float | None  # 0 to 1
    power_w: float | None
    memory_used_bytes: float | None
    memory_total_bytes: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsRead:
    """One read of a model's cumulative counters on the server, with the processor time spent until then."""

    before_ns: int  # CLOCK_MONOTONIC when the read was asked for
    after_ns: int  # and when its answer was there
    inference_count: int  # items
    execution_count: int  # batches
    success_count: int  # requests
    fail_count: int
    queue_ns: int
    request_ns: int
    batch_counts: Mapping[str, int]  # batch size -> executions
    busy_ns: int  # input + infer + output, once per execution (batch_stats)
    infer_ns: int
    client_cpu_s: float
    server_cpu_s: float | None  # None where the server is not on this machine
    machine_busy_s: float | None  # of all cores together, since boot
    machine_total_s: float | None
    steps: Mapping[str, StepCount] = field(default_factory=dict)  # an ensemble's composing models
    gpu: Gpu | None = None  # from the metrics endpoint; None = no such endpoint, or it did not answer
    batch_busy_ns: Mapping[str, int] = field(default_factory=dict)  # batch size -> its part of busy_ns

    @property
    def middle_ns(self) -> int:
        return (self.before_ns + self.after_ns) // 2

    @property
    def batches(self) -> int:
        """Executions of the model, or of an ensemble's last step: the ensemble itself counts each request as one."""
        return list(self.steps.values())[-1].execution_count if self.steps else self.execution_count


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerDelta:
    """What the server's own statistics say of a window: the difference of two reads of /stats."""

    read_width_ns: int  # time that the two reads took together
    seconds: float  # between the middles of the two reads
    inference_count: int  # items
    execution_count: int  # batches
    success_count: int
    fail_count: int
    queue_ns: int  # summed over requests
    request_ns: int  # the server's own duration of the successful requests, summed
    batch_counts: Mapping[str, int]  # batch size -> executions
    busy_ns: int  # input + infer + output over executions, from batch_stats
    infer_ns: int
    steps: Mapping[str, StepCount] = field(default_factory=dict)

    @property
    def effective_batch(self) -> float | None:
        executions = sum(self.batch_counts.values())
        items = sum(int(size) * n for size, n in self.batch_counts.items())
        return items / executions if executions else None

    def busy_share(self, instances: int) -> float:
        return self.busy_ns / (instances * self.seconds * 1e9)
