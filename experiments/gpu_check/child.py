"""The child process: measures one cell, or looks at the host, and ends. Reads a spec, writes a result (both JSON).

`python -m experiments.gpu_check.child measure PARENT SPEC RESULT` or `… probe PARENT DEVICE RESULT`. Whatever goes
wrong inside a cell becomes a result; only a process that dies leaves none.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brim import disk
from brim.offspring import die_with
from experiments.gpu_check import host, telemetry, timing
from experiments.gpu_check.cells import Cell, Entry, Timing
from experiments.gpu_check.timing import Effort

#: How memory that is not to be had shows itself where no OutOfMemoryError is raised.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "_ALLOC_FAILED")
REASON_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a child is asked to measure."""

    cell: Cell
    device: host.Device
    effort: Effort
    gpu_uuid: str


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or what caused it, says that device or host had no more memory to give."""
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return True
    if any(text in str(error) for text in OUT_OF_MEMORY):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and is_out_of_memory(cause)


def measure(spec: Spec) -> Entry:
    """The cell's entry, whatever became of it."""
    try:
        return _measured(spec)
    except Exception as error:  # noqa: BLE001  # the process boundary: a cell that fails is data
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:REASON_CHARACTERS]
        return Entry(cell=spec.cell, outcome="oom" if is_out_of_memory(error) else "failed", reason=reason)


def _measured(spec: Spec) -> Entry:
    import torch

    from experiments.gpu_check import work

    with torch.inference_mode():
        idle = telemetry.read(spec.gpu_uuid)
        job = work.build(spec.cell, spec.device)
        clock = _Clock(spec.device)
        clock.forget_memory()
        started = time.perf_counter()
        output = job.step()
        clock.wait()
        first_step_s = time.perf_counter() - started
        error = job.relative_error(output)
        del output
        times = _times(job.step, clock, spec.effort)
        for _ in range(timing.steps_for(spec.effort.loaded_s, times.median_ms / 1e3)):
            job.step()
        loaded = telemetry.read(spec.gpu_uuid)
        clock.wait()
    return Entry(
        cell=spec.cell,
        outcome="ok",
        timing=times,
        first_step_s=first_step_s,
        peak_bytes=clock.peak_bytes(),
        relative_error=error,
        idle=idle,
        loaded=loaded,
        gpu_uuid=spec.gpu_uuid,
    )


def _times(step: Callable[[], Any], clock: _Clock, effort: Effort) -> Timing:
    """Warm up, find the length of a repeat, soak until the times are flat, then measure."""
    for _ in range(effort.warmup_steps):
        step()
    clock.wait()
    steps = timing.steps_for(effort.repeat_s, clock.step_ms(step, 1) / 1e3)
    soak: list[float] = []
    started = time.perf_counter()
    while not timing.soaked(soak, time.perf_counter() - started, effort):
        soak.append(clock.step_ms(step, steps))
    soak_s = time.perf_counter() - started
    repeats: list[float] = []
    started = time.perf_counter()
    while not timing.measured(len(repeats), time.perf_counter() - started, effort):
        repeats.append(clock.step_ms(step, steps))
    return timing.summary(repeats, steps=steps, soak_s=soak_s, flat=timing.is_flat(soak))


class _Clock:
    """Times steps on the device that runs them: events in its own queue, or the host's clock on a CPU."""

    def __init__(self, device: host.Device) -> None:
        import torch

        self.cuda: Any = torch.cuda if device == "cuda" else None

    def step_ms(self, step: Callable[[], Any], steps: int) -> float:
        """Milliseconds of one step, over `steps` of them back to back."""
        if self.cuda is None:
            started_ns = time.perf_counter_ns()
            for _ in range(steps):
                step()
            return (time.perf_counter_ns() - started_ns) / 1e6 / steps
        start, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(steps):
            step()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / steps

    def wait(self) -> None:
        if self.cuda is not None:
            self.cuda.synchronize()

    def forget_memory(self) -> None:
        """Give back what building took, so that the peak is that of the steps."""
        if self.cuda is not None:
            self.wait()
            self.cuda.empty_cache()
            self.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int | None:
        return int(self.cuda.max_memory_allocated()) if self.cuda is not None else None


def main(arguments: list[str]) -> None:
    task, parent, subject, result = arguments
    die_with(int(parent))
    if task == "probe":
        disk.save(Path(result), host.probe("cpu" if subject == "cpu" else "cuda"))
    else:
        disk.save(Path(result), measure(disk.load(Spec, Path(subject))))


if __name__ == "__main__":
    main(sys.argv[1:])
