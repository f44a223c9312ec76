"""`brim calibrate` as a user runs it, and MLPerf LoadGen against a server that logs what it executed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from brim import disk, layout
from brim.records import Calibration, LoadPoint, Server, Status
from brim.say import Say
from experiments.calibrate import plan
from loadtest import loadgen, payload, target
from loadtest.driver import LoadSpec
from loadtest.loadgen import Settings
from loadtest.loadgen_driver import LoadGenDriver
from loadtest.rows import read_rows
from serve import embedded, executions, ledger, variants

pytestmark = pytest.mark.contract

#: The front door with a lock of the test's own: a user may be measuring on this machine.
FRONT_DOOR = """
import sys
from pathlib import Path
from brim.cli import main
from experiments.measure import ledger
ledger.machine_lock = lambda: Path(sys.argv[1])
main(sys.argv[2:])
"""


def test_both_generators_count_what_a_sleeping_server_logs_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    asked = "calibrate --known sleep --service-ms 5 --max-batch 4 --concurrency 1 --concurrency 8 --seconds 3 --json"
    done = subprocess.run(
        [sys.executable, "-c", FRONT_DOOR, str(tmp_path / "lock"), *asked.split(), "--out", str(tmp_path / "out")],
        capture_output=True, text=True, cwd=layout.CHECKOUT, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    assert done.returncode == (0 if all(row["holds"] for row in document["rows"]) else 1)
    told = {(row["quantity"].partition(",")[0], row["generator"]): row for row in document["rows"]}
    for generator in ("locust", "perf_analyzer"):
        # What is counted holds however busy the machine is; latencies are its clients', too.
        for quantity in ("capacity at 8 in flight", "batch at 8 in flight", "throughput at 1 in flight"):
            assert told[quantity, generator]["holds"], told[quantity, generator]
        assert 200 < told["capacity at 8 in flight", generator]["truth"] < 800  # 4 items a batch of 5 ms and overheads
        assert told["latency at 1 in flight", generator]["measured"] > 5.0
        assert abs(told["latency at 1 in flight", generator]["error_fraction"]) < 0.3
    calibrated = tmp_path / "out" / "calibrate"
    kept = disk.load(Calibration, next(calibrated.glob("*/calibration.json")))
    assert not layout.latest_calibration(tmp_path / "out").exists()  # rule 8 asks the whole default set only
    assert kept.holds is (done.returncode == 0)
    assert [row.measured for row in kept.rows] == [row["measured"] for row in document["rows"]]
    assert not list(ledger.SHM.glob(f"{next(calibrated.glob('servers/brim-*')).name}-*"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    server: Server
    variant: str
    folder: Path

    def executed(self, since_ns: int) -> list[executions.Execution]:
        return [e for e in executions.read_executions(self.folder, self.variant) if e[0] > since_ns]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served")
    out, repository = root / "out", root / "model_repository"
    variant = plan.variant("sleep", {"service_ms": 10.0}, max_batch=4, instances=1)
    variants.build(variant, out=out, repository=repository, viewed=[])
    with embedded.for_a_while(
        [variant.name], out=out, repository=repository, say=Say(quiet=True), wait_s=120.0
    ) as server:  # fmt: skip
        yield Served(server=server, variant=variant.name, folder=layout.server_folder(out, server.id))


def a_spec(served: Served, tmp_path: Path, point: LoadPoint, seconds: float) -> LoadSpec:
    asked = target.describe(served.server.http, served.variant, allowed={}, shapes={})
    pool = payload.prepare(asked, tmp_path / "payload", items_per_request=1, input_data=None, seed=0, pool=4)
    return LoadSpec(
        url=asked.url, model=asked.model, version="", point=point, payload=str(pool), folder=str(tmp_path / "load"),
        rows=str(tmp_path / "requests"), first_worker=0, seconds=seconds, timeout_s=10.0, drain_s=5.0, samples=0,
    )  # fmt: skip


def test_loadgen_offline_works_its_query_off_over_the_connections_it_has(served: Served, tmp_path: Path) -> None:
    spec = a_spec(served, tmp_path, LoadPoint(concurrency=8, sender="loadgen"), seconds=1.5)
    result = LoadGenDriver(Settings(expected_per_s=300.0)).start(spec, tmp_path / "load").finish()
    assert (result.ended, result.errors) == ("finished", {})
    assert "LoadGen Offline" in result.reason and "under our settings" in result.reason
    assert result.sent == result.ok == sum(items for _, _, items in served.executed(result.start_ns))
    assert result.ok == pytest.approx(1.1 * 1.5 * 300, abs=1)  # it adds a tenth
    summary = loadgen.read_summary((tmp_path / "load" / loadgen.SUMMARY).read_text())
    rows = read_rows(tmp_path)
    span_s = (rows["done_ns"].max() - rows["sent_ns"].min()) / 1e9
    assert summary is not None and summary.samples_per_s == pytest.approx(len(rows) / span_s, rel=0.1)
    starts, ends = np.sort(rows["sent_ns"]), np.sort(rows["done_ns"])
    in_flight = np.arange(1, len(starts) + 1) - np.searchsorted(ends, starts, side="right")
    assert in_flight.max() == 8


def test_loadgen_server_keeps_to_its_own_poisson_schedule(served: Served, tmp_path: Path) -> None:
    point = LoadPoint(mode="open", rate_per_s=150.0, arrivals="poisson", seed=3, outstanding=64, sender="loadgen")
    spec = a_spec(served, tmp_path, point, seconds=3.0)
    result = LoadGenDriver(Settings(latency_ms=1000.0)).start(spec, tmp_path / "load").finish()
    assert (result.ended, result.errors) == ("finished", {})
    assert result.sent == result.ok == sum(items for _, _, items in served.executed(result.start_ns))
    rows = read_rows(tmp_path)
    gaps_s = np.diff(np.sort(rows["intended_ns"])) / 1e9
    assert 1 / gaps_s.mean() == pytest.approx(150.0, rel=0.15)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(1.0, abs=0.5)  # an even spacing has 0
    summary = loadgen.read_summary((tmp_path / "load" / loadgen.SUMMARY).read_text())
    assert summary is not None and summary.scenario == "Server"
    mean_ms = float((rows["done_ns"] - rows["intended_ns"]).mean()) / 1e6
    assert mean_ms <= summary.mean_ms + 0.5  # which counts from the scheduled time, a little earlier
    assert mean_ms == pytest.approx(summary.mean_ms, rel=0.5)


def test_a_loadgen_that_is_told_to_stop_ends_soon_and_keeps_its_rows(served: Served, tmp_path: Path) -> None:
    spec = a_spec(served, tmp_path, LoadPoint(concurrency=8, sender="loadgen"), seconds=60.0)
    before_ns, deadline_s = time.monotonic_ns(), time.monotonic() + 10
    load = LoadGenDriver(Settings(expected_per_s=300.0)).start(spec, tmp_path / "load")
    while not served.executed(before_ns) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    load.stop()
    told_s = time.monotonic()
    result = load.finish()
    assert time.monotonic() - told_s < 20  # of 60 s
    assert result.ended == "stopped"
    assert 0 < result.ok == int((read_rows(tmp_path)["status"] == Status.OK).sum())
