"""The real perf_analyzer against a real Triton with a model of known service time, which logs its own truth."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from brim import layout
from brim.errors import NotReady
from brim.kserve import KServe
from brim.records import LoadPoint, Server, ServingConfig, Status, Target, Variant
from brim.say import Say
from loadtest import payload, target
from loadtest.driver import LoadSpec
from loadtest.perf_analyzer_driver import PerfAnalyzerDriver, RunningPerfAnalyzer, available, csv_file
from loadtest.perf_analyzer_output import csv_rate
from loadtest.rows import read_rows
from serve import embedded, executions, known, ledger, variants

pytestmark = pytest.mark.contract
SERVICE_MS = 20.0
CONCURRENCY = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    server: Server
    variant: str
    folder: Path

    def inferences(self) -> int:
        return int(KServe(self.server.http).statistics(self.variant)["inference_count"])

    def executed(self) -> list[executions.Execution]:
        return executions.read_executions(self.folder, self.variant)

    def target(self) -> Target:
        return target.describe(self.server.http, self.variant, allowed={}, shapes={})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve_sleep(tmp_path_factory.mktemp("served"))


def serve_sleep(root: Path) -> Iterator[Served]:
    out, repository = root / "out", root / "model_repository"
    variant = Variant(
        model=known.known_server("sleep", {"service_ms": SERVICE_MS}),
        config=ServingConfig(name="b8", engine="known", backend="python", max_batch=8),
    )
    variants.build(variant, out=out, repository=repository, viewed=[])
    server = embedded.start([variant.name], out=out, repository=repository, say=Say(quiet=True))
    try:
        yield Served(server=server, variant=variant.name, folder=layout.server_folder(out, server.id))
    finally:
        ledger.stop(server, out)


def start(
    asked: Target, tmp_path: Path, *, seconds: float, items: int = 1, point: LoadPoint | None = None
) -> RunningPerfAnalyzer:
    prepared = payload.prepare(asked, tmp_path / "payload", items_per_request=items, input_data=None, seed=0, pool=4)
    spec = LoadSpec(
        url=asked.url, model=asked.model, version="", payload=str(prepared),
        point=point or LoadPoint(concurrency=CONCURRENCY, items_per_request=items), folder=str(tmp_path / "load"),
        rows=str(tmp_path / "requests"), first_worker=0, seconds=seconds, timeout_s=30.0, drain_s=10.0, samples=0,
    )  # fmt: skip
    return PerfAnalyzerDriver().start(spec, tmp_path / "load")


def until(load: RunningPerfAnalyzer, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while load.running() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_perf_analyzer_runs_on_this_machine() -> None:
    assert available() is None


def test_rows_csv_server_log_and_the_closed_form_agree(served: Served, tmp_path: Path) -> None:
    before, earlier = served.inferences(), len(served.executed())
    result = start(served.target(), tmp_path, seconds=6.0).finish()
    assert (result.ended, result.reason, result.errors) == ("finished", "", {})
    assert result.sent == result.ok == result.items_ok == served.inferences() - before
    rows = read_rows(tmp_path)
    log = served.executed()[earlier:]
    assert sum(items for _, _, items in log) == result.ok
    # the requests split over two batches that alternate: throughput is concurrency / (2 x period)
    done_s = np.sort(rows["done_ns"][rows["status"] == Status.OK]) / 1e9
    rate = (len(done_s) - CONCURRENCY) / (done_s[-1] - done_s[CONCURRENCY - 1])
    period_s = statistics.mean(b[0] - a[0] for a, b in zip(log, log[1:], strict=False)) / 1e9
    assert rate == pytest.approx(CONCURRENCY / (2 * period_s), rel=0.05)
    reported = csv_rate(csv_file(tmp_path / "load").read_text(), LoadPoint(concurrency=CONCURRENCY))
    assert reported == pytest.approx(rate, rel=0.03)


def test_stamps_lie_close_to_the_ends_of_the_executions_that_the_server_logged(served: Served, tmp_path: Path) -> None:
    earlier = len(served.executed())
    start(served.target(), tmp_path, seconds=3.0).finish()
    ends = np.array([end_ns for _, end_ns, _ in served.executed()[earlier:]])
    done = np.sort(read_rows(tmp_path)["done_ns"])
    after = done - ends[np.clip(np.searchsorted(ends, done) - 1, 0, None)]
    assert 0 < np.median(after) < 5e6  # an answer is seen 1 to 2 ms after its batch ended


@pytest.mark.parametrize("arrivals", ["constant", "poisson"])
def test_in_an_open_loop_it_keeps_to_its_rate_whatever_the_server_does(
    served: Served, tmp_path: Path, arrivals: Literal["constant", "poisson"]
) -> None:
    earlier = len(served.executed())
    rate = 150.0  # beyond the 100/s that a batch of one or two can give: batches must grow
    point = LoadPoint(mode="open", rate_per_s=rate, arrivals=arrivals, outstanding=1000)
    result = start(served.target(), tmp_path, seconds=4.0, point=point).finish()
    assert (result.ended, result.reason) == ("finished", "")
    rows = read_rows(tmp_path)
    gaps_s = np.diff(np.sort(rows["sent_ns"])) / 1e9
    assert 1 / gaps_s.mean() == pytest.approx(rate, rel=0.05 if arrivals == "constant" else 0.2)  # 600 gaps
    # Variance over mean of the counts in tenths of a second: 0 for equal gaps, 1 for a Poisson process. Unlike the gaps
    # themselves they hardly show that others took its core for some milliseconds.
    counts, _ = np.histogram(rows["sent_ns"], np.arange(rows["sent_ns"].min(), rows["sent_ns"].max(), 100_000_000))
    dispersion = counts.var() / counts.mean()
    if arrivals == "constant":
        assert dispersion < 0.1
    else:
        assert dispersion == pytest.approx(1.0, abs=3 * math.sqrt(2 / len(counts)))
    log = served.executed()[earlier:]
    assert sum(items for _, _, items in log) == result.ok
    reported = csv_rate(csv_file(tmp_path / "load").read_text(), point)
    assert reported == pytest.approx(1 / gaps_s.mean(), rel=0.03)


def test_items_of_a_request_count_one_by_one(served: Served, tmp_path: Path) -> None:
    before = served.inferences()
    result = start(served.target(), tmp_path, seconds=2.0, items=3).finish()
    assert (result.ended, result.items_ok) == ("finished", 3 * result.ok)
    assert result.items_ok == served.inferences() - before


def test_after_a_stop_every_request_is_drained_and_told(served: Served, tmp_path: Path) -> None:
    before = served.inferences()
    load = start(served.target(), tmp_path, seconds=30.0)
    until(load, 1.5)
    load.stop()
    told_s = time.monotonic()
    result = load.finish()
    assert time.monotonic() - told_s < 3  # its window would last 10 s
    assert result.ended == "stopped"
    assert result.sent == result.ok + result.cancelled
    assert 0 < result.ok <= served.inferences() - before <= result.sent


def test_a_model_that_is_not_there_is_told_before_anything_is_sent(served: Served, tmp_path: Path) -> None:
    asked = dataclasses.replace(served.target(), model="nope")
    with pytest.raises(NotReady, match="nope"):
        start(asked, tmp_path, seconds=1.0)
    assert not (tmp_path / "requests").exists()


def test_a_server_that_is_killed_in_the_middle_is_lost_and_its_rows_are_kept(tmp_path: Path) -> None:
    serving = serve_sleep(tmp_path / "served")
    served = next(serving)
    try:
        load = start(served.target(), tmp_path, seconds=9.0)
        until(load, 1.5)
        assert served.server.pid is not None
        os.kill(served.server.pid, signal.SIGKILL)
        result = load.finish()
    finally:
        serving.close()  # type: ignore[attr-defined]  # a generator
    assert result.ended == "server_lost"
    assert result.ok > 0
    assert result.sent == len(read_rows(tmp_path))
    assert result.errors
