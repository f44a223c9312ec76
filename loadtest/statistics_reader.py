"""Reads a served model's counters about once a second, beside the processor time of client, server and machine.

Of an ensemble its composing models' counters, too; of a server of our own its GPUs, from the metrics endpoint.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import psutil

from brim.records import EnsembleStep, StatsRead, StepCount, Target
from loadtest.control import Control
from loadtest.metrics_reader import MetricsReader

#: A read costs about a millisecond of one core; once a second it stays below what a window can resolve.
INTERVAL_S = 1.0


class StatisticsReader:
    """One target's reads; `server_pid` is None where the server is not on this machine.

    The machine is the sender's: the cores that this process may use, and those that the server is pinned to.
    """

    def __init__(self, server: Control, target: Target, server_pid: int | None) -> None:
        own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        self._cores = frozenset(own) | frozenset(target.server.cpus if target.server else ())
        self._server, self._target = server, target
        self._server_cpu = ProcessorTime(() if server_pid is None else (server_pid,))
        self._client_cpu = ProcessorTime(())
        self._metrics = MetricsReader(target.server.metrics if target.server else None)

    def watch_clients(self, pids: Sequence[int]) -> None:
        """The processes that send now; time counts from zero again."""
        self._client_cpu = ProcessorTime(pids)

    def read(self) -> StatsRead:
        """One read; NotReady if the server does not answer."""
        before_ns = time.monotonic_ns()
        entry = self._server.statistics(self._target.model, self._target.version)
        steps = {step.model: self._step(step) for step in self._target.steps}
        after_ns = time.monotonic_ns()
        busy_s, total_s = machine_seconds(self._cores)
        return StatsRead(
            before_ns=before_ns,
            after_ns=after_ns,
            **counters(entry),
            client_cpu_s=self._client_cpu.spent_s() or 0.0,
            server_cpu_s=self._server_cpu.spent_s(),
            machine_busy_s=busy_s,
            machine_total_s=total_s,
            steps=steps,
            gpu=self._metrics.read(),
        )

    def _step(self, step: EnsembleStep) -> StepCount:
        """The counters of one composing model; others may use it too, and then its own are not only ours."""
        found = counters(self._server.statistics(step.model))
        return StepCount(
            inference_count=found["inference_count"],
            execution_count=found["execution_count"],
            success_count=found["success_count"],
            queue_ns=found["queue_ns"],
            busy_ns=found["busy_ns"],
            instances=step.instances,
        )


class ProcessorTime:
    """CPU seconds of some processes and their children; what has ended keeps what it last had."""

    def __init__(self, pids: Sequence[int], lookup: Callable[[int], psutil.Process] = psutil.Process) -> None:
        self._roots = list(pids)
        self._lookup = lookup
        self._spent: dict[int, float] = {}

    def spent_s(self) -> float | None:
        """None if none of them was ever seen: what they spend is not known, which is not zero."""
        for pid in self._roots:
            try:
                root = self._lookup(pid)
                for process in (root, *root.children(recursive=True)):
                    times = process.cpu_times()
                    self._spent[process.pid] = times.user + times.system
            except psutil.Error:
                continue
        return sum(self._spent.values()) if self._spent else None


def machine_seconds(cores: Collection[int]) -> tuple[float, float]:
    """Busy and total seconds of these cores since boot."""
    busy_s = total_s = 0.0
    for core, times in enumerate(psutil.cpu_times(percpu=True)):
        if core in cores:
            seconds = times._asdict()
            # What a guest uses is inside user time already; iowait is idle time.
            core_s = sum(s for part, s in seconds.items() if part not in ("guest", "guest_nice"))
            total_s += core_s
            busy_s += core_s - seconds["idle"] - seconds.get("iowait", 0.0)
    return busy_s, total_s


def counters(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The counters of one entry of Triton's model_stats under Brim's names.

    Busy time is input + infer + output from `batch_stats`, which count once per execution; the per-request
    counters charge a batch's time to each of its requests (Triton, extension_statistics).
    """
    requests = entry["inference_stats"]
    batches = entry.get("batch_stats", [])
    busy_ns = {
        str(b["batch_size"]): sum(int(b[part]["ns"]) for part in ("compute_input", "compute_infer", "compute_output"))
        for b in batches
    }
    return {
        "inference_count": int(entry["inference_count"]),
        "execution_count": int(entry["execution_count"]),
        "success_count": int(requests["success"]["count"]),
        "fail_count": int(requests["fail"]["count"]),
        "queue_ns": int(requests["queue"]["ns"]),
        "request_ns": int(requests["success"]["ns"]),
        "batch_counts": {str(b["batch_size"]): int(b["compute_infer"]["count"]) for b in batches},
        "busy_ns": sum(busy_ns.values()),
        "batch_busy_ns": busy_ns,
        "infer_ns": sum(int(b["compute_infer"]["ns"]) for b in batches),
    }
