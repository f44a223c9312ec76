"""The arithmetic of the benchmarks of serving, search and long runs, on logs and samples written by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.long import memory_of
from benchmarks.search import Found, Sleeper, full_period_ms
from benchmarks.serving_cost import cost_of
from brim import layout
from brim.errors import Lost
from serve.executions import Execution, Itemised


def batch(start_us: int, *parts_us: int, items: int = 8) -> Itemised:
    copy_in_us, concatenate_us, run_us, copy_out_us = parts_us
    return Itemised(
        start_ns=1000 * start_us,
        end_ns=1000 * (start_us + sum(parts_us)),
        items=items,
        copy_in_ns=1000 * copy_in_us,
        concatenate_ns=1000 * concatenate_us,
        run_ns=1000 * run_us,
        copy_out_ns=1000 * copy_out_us,
    )


def test_the_items_of_a_batch_add_up_to_its_period() -> None:
    cost = cost_of([batch(0, 10, 20, 3000, 70), batch(4000, 30, 20, 3200, 50), batch(8200, 1, 1, 1, 1)], 3000)
    assert (cost.batch, cost.copy_in_us, cost.concatenate_us, cost.run_us, cost.copy_out_us) == (8, 20, 20, 3100, 60)
    assert cost.gap_us == (900 + 900) / 2
    assert (
        cost.period_us == 4100 == cost.copy_in_us + cost.concatenate_us + cost.run_us + cost.copy_out_us + cost.gap_us
    )
    assert cost.added_us == 1100
    assert cost.efficiency == pytest.approx(3000 / 4100)


def starts_ms(*starts: float, items: int = 8) -> list[Execution]:
    return [(round(start * 1e6), round((start + 20) * 1e6), items) for start in starts]


def test_the_period_is_from_start_to_start_on_one_instance() -> None:
    logs = {"0_0": starts_ms(0, 21, 42, 63), "0_1": starts_ms(10, 33, 56)}
    assert full_period_ms(logs, 8, 0, 10**9) == pytest.approx((3 * 21 + 2 * 23) / 5)


def test_only_the_stretch_counts() -> None:
    logs = {"0_0": starts_ms(0, 100, 121, 142, 900)}
    assert full_period_ms(logs, 8, 50_000_000, 200_000_000) == pytest.approx(21)


@pytest.mark.parametrize("logs", [{"0_0": starts_ms(0, 21, 42, items=4)}, {"0_0": starts_ms(0)}, {}])
def test_a_server_that_was_not_kept_full_gives_no_truth(logs: dict[str, list[Execution]]) -> None:
    with pytest.raises(Lost, match="batches were full"):
        full_period_ms(logs, 8, 0, 10**9)


FOUND = Found(
    server=Sleeper(service_ms=20, max_batch=8, instances=2),
    periods_ms=(19, 21),
    items_per_s=800,
    verdict="saturated",
    concurrency=32,
    period_under_brim_ms=20.5,
    seconds_spent=60,
    points=(1, 2, 4),
    ladder_seconds=60,
)


@pytest.mark.parametrize(
    ("items_per_s", "verdict", "held"),
    [
        (784.1, "saturated", True),
        (815.9, "saturated", True),
        (783.9, "saturated", False),
        (816.1, "saturated", False),
        (800, "client_limited", False),
        (None, "unstable", False),
    ],
)
def test_a_figure_holds_within_two_percent_of_the_capacity(items_per_s: float | None, verdict: str, held: bool) -> None:
    found = dataclasses.replace(FOUND, items_per_s=items_per_s, verdict=verdict)
    assert found.capacity == pytest.approx(800)
    assert found.held == held


def test_what_the_machine_did_meanwhile_is_told_from_what_brim_counted() -> None:
    found = dataclasses.replace(FOUND, items_per_s=780, period_under_brim_ms=20.5)
    assert found.off == pytest.approx(-0.025)
    assert found.off_own == pytest.approx(780 / (16 / 20.5e-3) - 1)


def test_growth_is_that_of_a_line_through_what_comes_after_the_first_minute() -> None:
    times_s = [float(second) for second in range(601)]
    resident_mb = [min(second, 60) + max(0, second - 60) * 0.5 / 60 for second in times_s]
    memory = memory_of("sender", times_s, resident_mb)
    assert memory.settled_mb == 60
    assert memory.most_mb == pytest.approx(64.5)
    assert memory.slope_mb_per_minute == pytest.approx(0.5)
    assert memory.grown_mb == pytest.approx(4.5)


#: A benchmark that dies beside the perf_analyzer that it has started.
KILLED = """
import os, signal, sys
from pathlib import Path
from benchmarks import traffic
from brim import layout
from brim.records import LoadPoint, Target

folder = Path(sys.argv[1])
layout.perf_analyzer = lambda: folder / "perf_analyzer"
sent = traffic.Traffic(
    target=Target(url="http://127.0.0.1:1", model="m", version="", inputs=(), outputs=(), max_batch=8, instances=1,
                  server_name="", server_version=""),
    payload=folder, point=LoadPoint(concurrency=1), folder=folder)
with traffic._perf_analyzer(sent, [], folder / "log") as pid:
    print(pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_perf_analyzer_does_not_outlive_a_benchmark_that_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "perf_analyzer"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    (tmp_path / "perf_analyzer-input.json").touch()  # it is written already
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=layout.CHECKOUT,
        check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    stat, deadline = Path(f"/proc/{int(done.stdout)}/stat"), time.monotonic() + 5
    with contextlib.suppress(FileNotFoundError):  # it was reaped
        while stat.read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline, f"{done.stdout} still runs"
            time.sleep(0.01)
