"""LoadGen's summary as it was recorded, and the loads that it is not for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from brim.errors import UsageError
from brim.records import Access, LoadPoint, TargetLimit
from loadtest import loadgen
from loadtest.driver import LoadSpec
from loadtest.loadgen import Settings, Summary
from loadtest.loadgen_driver import LoadGenDriver

DATA = Path(__file__).parent.parent / "data" / "loadgen"


def test_the_recorded_offline_run_was_valid() -> None:
    summary = loadgen.read_summary((DATA / "offline.txt").read_text())
    assert summary == Summary(
        scenario="Offline", valid=True, samples_per_s=394.114, mean_ms=1129.163308, p99_ms=2212.720838, unmet=()
    )
    assert loadgen.words(summary) == "LoadGen Offline: 394.1 samples/s, VALID under our settings"


def test_the_recorded_server_run_says_what_it_lacked() -> None:
    summary = loadgen.read_summary((DATA / "server.txt").read_text())
    assert summary is not None
    assert (summary.valid, summary.unmet) == (False, ("Early stopping",))
    assert loadgen.words(summary) == "LoadGen Server: 92.9 samples/s, INVALID under our settings: Early stopping"


@pytest.mark.parametrize("cut", [0, 100, 300])
def test_a_summary_that_was_cut_off_is_none(cut: int) -> None:
    assert loadgen.read_summary((DATA / "offline.txt").read_text()[:cut]) is None


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"url": "grpc://127.0.0.1:1"}, "plain HTTP"),
        ({"url": "https://127.0.0.1:1"}, "plain HTTP"),
        ({"point": LoadPoint(concurrency=4, transport="shared_memory")}, "plain HTTP"),
        ({"access": Access(headers={"Authorization": "/dev/null"})}, "plain HTTP"),
        ({"point": LoadPoint(concurrency=4, senders=2)}, "one process"),
        ({"point": LoadPoint(mode="open", rate_per_s=9.0, arrivals="constant", outstanding=4)}, "Poisson"),
        ({"allowed": {"127.0.0.1": TargetLimit(host="127.0.0.1", max_rate_per_s=5.0)}}, "no limit"),
    ],
)
def test_a_load_that_it_cannot_send_as_meant_is_refused(tmp_path: Path, changed: dict[str, object], why: str) -> None:
    spec = LoadSpec(
        url="http://127.0.0.1:1", model="sleep", version="", point=LoadPoint(concurrency=4, sender="loadgen"),
        payload=str(tmp_path), folder=str(tmp_path), rows=str(tmp_path), first_worker=0, seconds=1.0, timeout_s=1.0,
        drain_s=1.0, samples=0,
    )  # fmt: skip
    spec = dataclasses.replace(spec, **changed)  # type: ignore[arg-type]  # the fields of a LoadSpec
    with pytest.raises(UsageError, match=why):
        LoadGenDriver(Settings()).start(spec, tmp_path)
    assert not list(tmp_path.iterdir())
