"""Sends one load for a few seconds with one generator, and counts it from outside: the same meter for everybody.

Items come from the server's own counters, client CPU from the kernel's account of the sending processes, both read
at the two ends of a stretch in the middle of the load: neither start-up nor what a generator says of itself counts.
Every run writes into its traffic's folder, which is emptied first.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.served import LONGEST_S, SAMPLES, TIMEOUT_S
from benchmarks.side_by_side import Figures
from brim import disk, guard, layout
from brim.errors import BrimError, Lost
from brim.records import Access, LoadPoint, Target
from loadtest import perf_analyzer_command, perf_analyzer_memory, prepared, sender_driver, supervise
from loadtest.control import control
from loadtest.driver import LoadSpec
from loadtest.statistics_reader import StatisticsReader

ITEMS, PER_CPU = "items/s", "requests per client CPU-s"
WARM_S = 1.0  # after the first answers: connections, batches and caches have settled by then
MEASURED_S = 4.0
FIRST_ANSWERS_S = 60.0  # perf_analyzer reads its input data first
WINDOW_MS, STOPS_WITHIN_S = 1000, 15.0  # of perf_analyzer


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What is sent to whom; every generator sends the same payload of one item a request."""

    target: Target
    payload: Path
    point: LoadPoint
    folder: Path


def with_brim(traffic: Traffic) -> Figures:
    """One run of Brim's sender, its rows, status and length checks on; Lost unless every request ended well."""
    folder = _emptied(traffic.folder)
    spec = LoadSpec(
        url=traffic.target.url, model=traffic.target.model, version="", point=traffic.point,
        payload=str(traffic.payload), folder=str(folder), rows=str(folder / "requests"), first_worker=0,
        seconds=LONGEST_S, timeout_s=TIMEOUT_S, drain_s=TIMEOUT_S, samples=SAMPLES,
    )  # fmt: skip
    load = sender_driver.SenderDriver().start(spec, folder)
    try:
        figures = _measured(traffic.target, load.pids)
    finally:
        load.stop()
        result = load.finish()
    if result.ended != "stopped" or result.ok < result.sent:
        raise Lost(f"a run was no good: {result.ended} {result.reason} {dict(result.errors)}")
    return figures


@contextlib.contextmanager
def sending_by(module: str) -> Iterator[None]:
    """Have Brim's HTTP sender run by another module's main for the length of the block."""
    usual = sender_driver.MODULES["locust_http"]
    sender_driver.MODULES["locust_http"] = module
    try:
        yield
    finally:
        sender_driver.MODULES["locust_http"] = usual


def with_perf_analyzer(traffic: Traffic, mode: Sequence[str]) -> Figures:
    """One run of perf_analyzer without any trace; `mode` are the arguments that runs differ by."""
    folder = _emptied(traffic.folder)
    log = folder / "perf_analyzer.log"
    with _perf_analyzer(traffic, mode, log) as pid:
        try:
            return _measured(traffic.target, [pid])
        except BrimError as error:
            said = log.read_text(encoding="utf-8", errors="replace").strip()
            raise Lost(f"{error}; perf_analyzer said: {said[-500:]}") from None


@contextlib.contextmanager
def _perf_analyzer(traffic: Traffic, mode: Sequence[str], log: Path) -> Iterator[int]:
    """Its pid while it sends, window after window that is never stable enough; it ends with this process.

    At the end it is asked to stop, which it does after its window: killed, it would leave shared memory that the
    server still reads, and the next one would cut that memory short under it.
    """
    point, target = traffic.point, traffic.target
    data = perf_analyzer_command.write_input_data(traffic.payload, lambda: target.max_batch > 0)
    program = [
        *(str(layout.perf_analyzer()), "-m", target.model, "-i", point.protocol),
        *("-u", guard.parse_url(target.url).netloc, "-b", "1", "--input-data", str(data)),
        *("--concurrency-range", str(point.concurrency), "--measurement-interval", str(WINDOW_MS)),
        *("--stability-percentage", "0.001", "--max-trials", str(round(1000 * LONGEST_S / WINDOW_MS))),
        *(("--shared-memory", "system") if point.transport == "shared_memory" else ()),
        *mode,
    ]
    environment = perf_analyzer_command.environment(layout.perf_analyzer_libraries())
    with _claimed(traffic) as handles, log.open("wb") as said:
        child = subprocess.Popen(
            supervise.command(program), env=environment, stdin=subprocess.DEVNULL, stdout=said,
            stderr=subprocess.STDOUT, pass_fds=handles,
        )  # fmt: skip
        try:
            yield child.pid
        finally:
            child.send_signal(signal.SIGINT)
            try:
                child.wait(STOPS_WITHIN_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextlib.contextmanager
def _claimed(traffic: Traffic) -> Iterator[tuple[int, ...]]:
    """What perf_analyzer is to inherit, so that whatever it leaves in shared memory is swept."""
    if traffic.point.transport != "shared_memory":
        yield ()
        return
    with perf_analyzer_memory.claimed(traffic.target.url, Access(), prepared.load(traffic.payload)) as handle:
        yield (handle,)


def _measured(target: Target, pids: Sequence[int]) -> Figures:
    """What the server answered and what these processes spent on it, once answers have begun to come."""
    reader = StatisticsReader(control(target.url, {}, Access()), target, None)
    reader.watch_clients(pids)
    before, deadline = reader.read().inference_count, time.monotonic() + FIRST_ANSWERS_S
    while reader.read().inference_count == before:
        if time.monotonic() > deadline:
            raise Lost(f"no request was answered within {FIRST_ANSWERS_S:g} s")
        time.sleep(0.1)
    time.sleep(WARM_S)
    first = reader.read()
    time.sleep(MEASURED_S)
    last = reader.read()
    items, cpu_s = last.inference_count - first.inference_count, last.client_cpu_s - first.client_cpu_s
    if not items or not cpu_s:
        raise Lost(f"{items} answers for {cpu_s:g} s of processor time: the generator has ended")
    return {ITEMS: items / ((last.middle_ns - first.middle_ns) / 1e9), PER_CPU: items / cpu_s}


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return disk.make_folder(folder)
