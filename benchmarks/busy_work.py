"""A fixed amount of work, and how much of it takes a given time."""

from __future__ import annotations

import time

LOOPS = "BRIM_BENCH_BUSY_LOOPS"  # environment variable: how the benchmark tells its senders
TRIAL_LOOPS, TRIALS = 10_000, 2_000


def work(loops: int) -> int:
    """It takes longer where others use the cores, and is never less."""
    return sum(range(loops))


def loops_for(seconds: float) -> int:
    """Loops that take so long in a process that has a core to itself."""
    taken = []
    for _ in range(TRIALS):
        before = time.thread_time_ns()
        work(TRIAL_LOOPS)
        taken.append(time.thread_time_ns() - before)
    undisturbed_ns = sorted(taken)[TRIALS // 4]
    return round(TRIAL_LOOPS * seconds * 1e9 / undisturbed_ns)
