"""The driver of a cluster against a script that stands in for the master, and says what it should or should not."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from brim import disk
from brim.errors import NotReady, UsageError, WorkerLost
from brim.records import ROW, ROW_HEADER, ROW_MAGIC, ROW_SCHEMA, LoadPoint, Status
from loadtest import cluster_driver
from loadtest.cluster_driver import ClusterDriver, Master
from loadtest.cluster_wire import Place
from loadtest.driver import LoadResult, LoadSpec
from loadtest.senders.tally import result_file

#: Answers each thing that it is told with the next of its lines; `+` parts lines that come together.
MASTER = """
import sys
for told, said in zip(sys.stdin, sys.argv[1:]):
    for line in filter(None, said.split("+")):
        print(line, flush=True)
sys.stdin.read()
"""
STARTED, ENDED = '{"event": "started"}', '{"event": "ended", "failures": {}, "no_room": false}'
REFUSED = '{"event": "refused", "exit_code": 3, "message": "nobody answers"}'


@contextmanager
def driven(*says: str) -> Iterator[ClusterDriver]:
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            [sys.executable, "-c", MASTER, *says], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
        master = Master(child, log, lambda line: None)
        try:
            yield ClusterDriver(master, Place(host="127.0.0.1"), 2)
        finally:
            child.kill()
            master.end()


def spec(folder: Path, **changed: Any) -> LoadSpec:
    usual: dict[str, Any] = {
        "url": "http://127.0.0.1:8000", "model": "m", "version": "", "point": LoadPoint(concurrency=2, senders=2),
        "payload": "p", "folder": str(folder / "raw"), "rows": str(folder / "requests"), "first_worker": 0,
        "seconds": 0.0, "timeout_s": 1.0, "drain_s": 0.0, "samples": 0,
    }  # fmt: skip
    return LoadSpec(**{**usual, **changed})


def delivered(folder: Path, worker: int) -> None:
    """What the master has written of a worker that answered three requests."""
    rows = b"".join(ROW.pack(n, n, n + 1, 1, worker, Status.OK) for n in range(3))
    (folder / "requests").mkdir(exist_ok=True)
    (folder / "requests" / f"{worker}.bin").write_bytes(ROW_HEADER.pack(ROW_MAGIC, ROW_SCHEMA, 0, 0) + rows)
    result = LoadResult(
        workers=(worker,), start_ns=0, end_ns=9, sent=3, ok=3, rejected=0, timed_out=0, failed=0, cancelled=0,
        items_ok=3, client_cpu_s=0.0, ended="finished",
    )  # fmt: skip
    disk.save(result_file(folder / "raw", worker), result)


def sent(driver: ClusterDriver, folder: Path) -> LoadResult:
    return driver.start(spec(folder), folder / "raw").finish()


def test_a_load_in_order_is_the_sum_of_its_workers_and_the_next_one_may_come(tmp_path: Path) -> None:
    for worker in (0, 1):
        delivered(tmp_path, worker)
    with driven(f"{STARTED}+{ENDED}", REFUSED, f"{STARTED}+{ENDED}") as driver:
        result = sent(driver, tmp_path)
        assert (result.ended, result.ok, result.workers) == ("finished", 6, (0, 1))
        with pytest.raises(NotReady, match="nobody answers"):
            sent(driver, tmp_path)
        assert sent(driver, tmp_path).ok == 6


def test_after_a_start_that_took_too_long_no_load_takes_the_late_word_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with driven("", f"{STARTED}+{ENDED}") as driver:
        monkeypatch.setattr(cluster_driver, "START_WITHIN_S", 0.1)
        with pytest.raises(WorkerLost, match="were not ready within"):
            sent(driver, tmp_path)
        with pytest.raises(WorkerLost, match="the cluster broke"):
            sent(driver, tmp_path)
        with pytest.raises(UsageError):  # what it never sends it says first
            driver.start(spec(tmp_path, point=LoadPoint(concurrency=3, senders=3)), tmp_path / "raw")


def test_after_a_load_whose_end_was_never_told_there_is_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_driver, "TRANSFER_S", 0.1)
    delivered(tmp_path, 0)
    with driven(STARTED) as driver:
        result = sent(driver, tmp_path)
        with pytest.raises(WorkerLost, match="the cluster broke"):
            sent(driver, tmp_path)
    assert (result.ended, result.ok) == ("crashed", 3)  # from the rows
    assert "did not hear every worker in time" in result.reason


@pytest.mark.parametrize("said", [f"{STARTED}+{STARTED}", f"{STARTED}+{json.dumps({'event': 'ready'})}"])
def test_a_word_out_of_turn_breaks_the_cluster_and_not_this_process(tmp_path: Path, said: str) -> None:
    with driven(said) as driver:
        result = sent(driver, tmp_path)
        assert result.ended == "crashed" and "where ended or refused was due" in result.reason
        with pytest.raises(WorkerLost, match="the cluster broke"):
            sent(driver, tmp_path)


def test_a_worker_whose_result_cannot_be_read_counts_by_its_rows(tmp_path: Path) -> None:
    for worker in (0, 1):
        delivered(tmp_path, worker)
    result_file(tmp_path / "raw", 1).write_text("{")
    (tmp_path / "raw" / "cluster.jsonl").write_text("no line of JSON\n{}\n")
    begun = time.monotonic()
    with driven(f"{STARTED}+{ENDED}") as driver:
        result = sent(driver, tmp_path)
    assert (result.ended, result.ok) == ("crashed", 6)
    assert "result-1.json" in result.reason
    assert time.monotonic() - begun < 10
