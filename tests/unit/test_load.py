"""One load around a driver that sends nothing: whatever ends it, the driver is stopped and finished."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from brim.errors import Interrupted, NotReady
from brim.kserve import KServe
from brim.records import LoadPoint
from loadtest import target
from loadtest.driver import LoadResult, LoadSpec
from loadtest.load import Loaded, run_load
from loadtest.plan import FIGURE, read_plan
from loadtest.statistics_reader import StatisticsReader
from tests.fakes import FakeServer


@dataclass
class Sending:
    """A driver and its load, which run until they are stopped."""

    generator: Literal["locust", "perf_analyzer", "loadgen"] = "locust"
    ends_itself: bool = False
    pids: tuple[int, ...] = ()
    calls: list[str] = field(default_factory=list)

    def start(self, spec: LoadSpec, folder: Path) -> Sending:
        self.calls.append("start")
        return self

    def running(self) -> bool:
        return "stop" not in self.calls

    def stop(self) -> None:
        self.calls.append("stop")

    def finish(self) -> LoadResult:
        self.calls.append("finish")
        return LoadResult(
            workers=(0,), start_ns=0, end_ns=1, sent=0, ok=0, rejected=0, timed_out=0, failed=0, cancelled=0,
            items_ok=0, client_cpu_s=0.0, ended="stopped",
        )  # fmt: skip


def loaded(server: FakeServer, folder: Path, sending: Sending, *, seconds: float = 0.0, **changed: Any) -> Loaded:
    """A load of at most so many seconds; `changed`: what run_load is told."""
    described = target.describe(server.url, server.model, allowed={}, shapes={})
    spec = LoadSpec(
        url=server.url, model=server.model, version="", point=LoadPoint(concurrency=1), payload="", folder=str(folder),
        rows=str(folder / "requests"), first_worker=0, seconds=seconds, timeout_s=1.0, drain_s=1.0, samples=0,
    )  # fmt: skip
    told: dict[str, Any] = {
        "index": 0, "purpose": "figure", "length": FIGURE, "suffices": lambda reads: True,
        "progress": lambda elapsed_s, wanted_s: None, "pause": lambda seconds: None,
    }  # fmt: skip
    reader = StatisticsReader(KServe(server.url), described, None)
    return run_load(sending, spec, read_plan(None), reader, **{**told, **changed})


def test_a_load_that_is_long_enough_is_stopped_once_and_finished(tmp_path: Path) -> None:
    sending = Sending()
    with FakeServer() as server:
        found = loaded(server, tmp_path, sending)
    assert sending.calls == ["start", "stop", "finish"]
    assert (found.load.ended, len(found.reads), found.interrupted) == ("stopped", 3, None)


def test_a_load_that_ends_by_itself_is_not_waited_for_until_the_next_read(tmp_path: Path) -> None:
    sending, waited_s = Sending(ends_itself=True), [0.0]

    def pause(seconds: float) -> None:
        waited_s[0] += seconds
        if waited_s[0] > 1.25:
            sending.calls.append("stop")

    with FakeServer() as server:
        found = loaded(server, tmp_path, sending, seconds=60.0, pause=pause)
    assert waited_s[0] == pytest.approx(1.3)
    assert len(found.reads) == 3  # before it, a second after its start, and behind it


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("middle_ns"), SystemExit(3), KeyboardInterrupt()])
def test_what_is_raised_beside_a_load_ends_it_before_it_goes_on(tmp_path: Path, error: BaseException) -> None:
    def progress(elapsed_s: float, wanted_s: float) -> None:
        raise error

    sending = Sending()
    with FakeServer() as server, pytest.raises(type(error)):
        loaded(server, tmp_path, sending, progress=progress)
    assert sending.calls == ["start", "stop", "finish"]


def test_a_signal_ends_a_load_too_and_is_kept_for_the_caller(tmp_path: Path) -> None:
    def pause(seconds: float) -> None:
        raise Interrupted(15)

    sending = Sending()
    with FakeServer() as server:
        found = loaded(server, tmp_path, sending, pause=pause)
    assert sending.calls == ["start", "stop", "finish"]
    assert found.interrupted is not None and found.interrupted.exit_code == 143


def test_a_server_that_has_no_statistics_any_more_is_lost(tmp_path: Path) -> None:
    """It answers, with an empty list: its model was unloaded."""
    sending = Sending()

    class Unloaded(FakeServer):
        def _control(self, path: str) -> tuple[int, Any]:
            status, about = super()._control(path)
            return status, {"model_stats": []} if path.endswith("/stats") and sending.calls else about

    with Unloaded() as server:
        found = loaded(server, tmp_path, sending, seconds=60.0)
        with pytest.raises(NotReady, match="tells no statistics of"):
            KServe(server.url).statistics(server.model)
    assert sending.calls == ["start", "stop", "finish"]
    assert (found.load.ended, len(found.reads)) == ("server_lost", 1)
