"""Reads of the statistics: an ensemble's steps and the GPUs, from what is asked to what a window says."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import psutil
import pytest

from brim.errors import Lost
from brim.kserve import KServe
from brim.records import EnsembleStep, Gpu, LoadPoint, StatsRead, StepCount, Target, Window
from judging.rows import ROW_DTYPE, Rows
from judging.steady import Steady
from judging.windows import cut_windows, server_delta
from loadtest.statistics_reader import ProcessorTime, StatisticsReader, counters
from tests.fakes import FakeServer

SECOND = 1_000_000_000
STEP = StepCount(inference_count=80, execution_count=10, success_count=80, queue_ns=7, busy_ns=600, instances=2)
GPU = Gpu(utilization=0.5, power_w=300.0, memory_used_bytes=1e9, memory_total_bytes=8e10)


def read(at_s: float, gpu: Gpu | None = None, **steps: StepCount) -> StatsRead:
    at_ns = round(at_s * SECOND)
    return StatsRead(
        before_ns=at_ns, after_ns=at_ns, inference_count=0, execution_count=round(100 * at_s), success_count=0,
        fail_count=0, queue_ns=0, request_ns=0, batch_counts={}, busy_ns=0, infer_ns=0, client_cpu_s=0.0,
        server_cpu_s=None, machine_busy_s=None, machine_total_s=None, steps=steps, gpu=gpu,
    )  # fmt: skip


def test_each_step_is_read_with_the_instances_of_its_own_configuration() -> None:
    with FakeServer() as server:
        ask = KServe(server.url)
        target = Target(
            url=server.url, model=server.model, version="", inputs=(), outputs=(), max_batch=8, instances=1,
            server_name="", server_version="", steps=(EnsembleStep(model=server.model, max_batch=8, instances=3),),
        )  # fmt: skip
        taken = StatisticsReader(ask, target, None).read()
        plain = StatisticsReader(ask, replace(target, steps=()), None).read()
        of_model = counters(ask.statistics(server.model))
    step = taken.steps[server.model]
    assert step.instances == 3
    assert step.inference_count == of_model["inference_count"] == taken.inference_count
    assert step.busy_ns == of_model["busy_ns"] == taken.busy_ns
    assert (plain.steps, plain.gpu, taken.gpu) == ({}, None, None)


def test_the_batches_of_an_ensemble_are_those_of_its_last_step() -> None:
    assert read(1).batches == 100
    assert read(1, resize=STEP, network=replace(STEP, execution_count=7)).batches == 7


def test_a_window_holds_what_each_step_did_in_it() -> None:
    later = StepCount(
        inference_count=200, execution_count=30, success_count=200, queue_ns=107, busy_ns=1_600, instances=2
    )
    grown = StepCount(
        inference_count=120, execution_count=20, success_count=120, queue_ns=100, busy_ns=1_000, instances=2
    )
    assert server_delta(read(0, resize=STEP), read(1, resize=later)).steps == {"resize": grown}
    assert server_delta(read(0), read(1, resize=later)).steps == {}  # not read at its beginning
    with pytest.raises(Lost, match=r"resize\.inference_count went back"):
        server_delta(read(0, resize=later), read(1, resize=STEP))


def windows_with(*gpus: Gpu | None) -> list[Window]:
    """A steady load of 12 s, answered every 10 ms, with one read a second."""
    done_ns = np.arange(1, 1201) * (SECOND // 100)
    rows = np.zeros(len(done_ns), dtype=ROW_DTYPE).view(Rows)
    rows["intended_ns"] = rows["sent_ns"] = done_ns - SECOND // 200
    rows["done_ns"], rows["items"] = done_ns, 1
    return cut_windows(
        rows,
        [read(second + 0.5, gpu) for second, gpu in enumerate(gpus)],
        generator="locust",
        point=LoadPoint(concurrency=1),
        steady=Steady(from_ns=SECOND, unstable=False, halves=0.0, bins=100),
        until_ns=12 * SECOND,
        period_ns=SECOND // 100,
        min_seconds=8,
    )


def test_a_windows_gpu_is_the_mean_of_the_reads_inside_it() -> None:
    busy = replace(GPU, utilization=0.7, power_w=None)
    windows = windows_with(*[replace(GPU, utilization=9.0)] * 2, *[GPU, busy] * 5)  # the first lie in the warm-up
    measured = [w for w in windows if w.kind == "measured"]
    assert len(measured) == 1 and measured[0].gpu is not None
    assert measured[0].gpu.utilization == pytest.approx(0.6, abs=0.021)
    assert replace(measured[0].gpu, utilization=0.5) == GPU  # power is the mean of those that knew it
    assert measured[0].reasons == ()


def test_an_endpoint_that_was_down_for_a_while_is_told_and_one_that_never_answered_is_not() -> None:
    partly = [w for w in windows_with(*[None] * 8, *[GPU] * 4) if w.kind == "measured"]
    assert partly[0].gpu == GPU
    assert any(reason.startswith("GPU metrics in 4 of ") for reason in partly[0].reasons)
    never = [w for w in windows_with(*[None] * 12) if w.kind == "measured"]
    assert (never[0].gpu, never[0].reasons) == (None, ())


def test_processor_time_of_a_process_that_never_was_is_not_known_and_of_one_that_ended_is_kept() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        spent = ProcessorTime([child.pid])
        first_s = spent.spent_s()
    assert first_s is not None
    assert spent.spent_s() == first_s
    with pytest.raises(psutil.NoSuchProcess):
        psutil.Process(child.pid)
    assert ProcessorTime([child.pid]).spent_s() is None
    assert ProcessorTime([child.pid, os.getpid()]).spent_s() is not None


def test_a_server_whose_process_is_not_there_has_no_processor_time_and_its_clients_have_none_yet() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    with FakeServer() as server:
        ask = KServe(server.url)
        target = Target(
            url=server.url, model=server.model, version="", inputs=(), outputs=(), max_batch=8, instances=1,
            server_name="", server_version="",
        )  # fmt: skip
        taken = [StatisticsReader(ask, target, pid).read() for pid in (ended.pid, None, os.getpid())]
    assert [read.server_cpu_s is None for read in taken] == [True, True, False]
    assert [read.client_cpu_s for read in taken] == [0.0] * 3
