"""What the Locust driver decides without starting anything: sums, recovery from rows, points it cannot send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from brim.errors import UsageError
from brim.records import LoadPoint, Status, TargetLimit
from loadtest import sender_driver
from loadtest.driver import LoadResult, LoadSpec
from loadtest.senders.tally import RowFile


def result(worker: int, **changed: Any) -> LoadResult:
    usual: dict[str, Any] = {
        "workers": (worker,),
        "start_ns": 10 + worker,
        "end_ns": 20 + worker,
        "sent": 15,
        "ok": 5,
        "rejected": 4,
        "timed_out": 3,
        "failed": 2,
        "cancelled": 1,
        "items_ok": 10,
        "client_cpu_s": 0.5,
        "ended": "finished",
        "errors": {"x": 2},
    }
    return LoadResult(**{**usual, **changed})


def test_the_results_of_senders_are_summed_and_the_worst_end_stands() -> None:
    crashed = result(1, unsent=7, ended="crashed", reason="killed", errors={"x": 1, "y": 1}, no_room=True)
    assert sender_driver.merged([result(0, unsent=1), crashed, result(2, ended="stopped")]) == LoadResult(
        workers=(0, 1, 2),
        start_ns=10,
        end_ns=22,
        sent=45,
        ok=15,
        rejected=12,
        timed_out=9,
        failed=6,
        cancelled=3,
        items_ok=30,
        client_cpu_s=1.5,
        ended="crashed",
        errors={"x": 5, "y": 1},
        reason="killed",
        no_room=True,
        unsent=8,
    )


def test_a_sender_that_left_no_result_is_counted_from_its_rows(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "3.bin", 3, 2)
    for status in (Status.OK, Status.OK, Status.REJECTED, Status.TIMED_OUT, Status.FAILED, Status.CANCELLED):
        file.add(1, 1, 2, status)
    file.close()
    with (tmp_path / "3.bin").open("ab") as stream:
        stream.write(b"\0" * 17)  # a row that the kill cut off
    found = sender_driver.recovered(tmp_path / "3.bin", 3, start_ns=1, end_ns=9, reason="signal 9")
    assert (found.sent, found.ok, found.items_ok, found.ended) == (6, 2, 4, "crashed")
    assert found.sent == found.ok + found.rejected + found.timed_out + found.failed + found.cancelled
    nothing = sender_driver.recovered(tmp_path / "4.bin", 4, start_ns=1, end_ns=9, reason="signal 9")
    assert (nothing.sent, nothing.ended) == (0, "crashed")


def spec_of(point: LoadPoint, folder: Path, **changed: Any) -> LoadSpec:
    usual: dict[str, Any] = {
        "url": "http://127.0.0.1:1", "model": "m", "version": "", "point": point, "payload": "", "folder": str(folder),
        "rows": str(folder), "first_worker": 0, "seconds": 1, "timeout_s": 1, "drain_s": 1, "samples": 0,
    }  # fmt: skip
    return LoadSpec(**{**usual, **changed})


OPEN = LoadPoint(mode="open", rate_per_s=100.0, arrivals="poisson", outstanding=4)


@pytest.mark.parametrize(
    ("point", "changed", "why"),
    [
        (LoadPoint(concurrency=1, sender="perf_analyzer"), {}, "no sender is called"),
        (OPEN, {}, "an open loop needs them"),
        (LoadPoint(concurrency=1), {"arrivals": "arrivals.npy"}, "closed with arrivals"),
    ],
)
def test_points_that_no_sender_can_send_are_refused(
    tmp_path: Path, point: LoadPoint, changed: dict[str, Any], why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        sender_driver.SenderDriver().start(spec_of(point, tmp_path, **changed), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_schedule_faster_than_its_host_may_be_loaded_is_refused(tmp_path: Path) -> None:
    def judge(cap: float, host: str = "203.0.113.7") -> None:
        allowed = {host: TargetLimit(host=host, max_rate_per_s=cap)}
        sender_driver._require_ours(
            spec_of(OPEN, tmp_path, url=f"http://{host}:1", allowed=allowed, arrivals="arrivals.npy")
        )

    with pytest.raises(UsageError, match=r"100 requests/s are more than the 99/s that 203\.0\.113\.7 may get"):
        judge(99.0)
    judge(100.0)
    judge(1.0, "127.0.0.1")  # a host of ours has no limit
