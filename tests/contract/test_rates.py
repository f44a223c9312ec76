"""`brim loadtest` at a rate, and for the rate at an SLO, on the real Triton: what it answers, keeps and exits with."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import experiments.measure.cli
import experiments.measure.rate_at_slo
import experiments.measure.send
import experiments.measure.slo
import experiments.measure.slo_profile
import judging.slo_model
from brim import disk, layout
from brim.records import Load, Run, SloRate
from experiments.measure.slo_profile import Sought
from loadtest.rows import read_rows
from serve import ledger
from serve.executions import read_executions
from tests.measuring import Bench, start, until

pytestmark = pytest.mark.contract

Asked = Callable[..., tuple[int, dict[str, Any]]]

SLEEP = "sleep__b4"  # 20 ms a batch of 4: some 190 items/s with full batches


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = start(tmp_path_factory.mktemp("rates"), "sleep:service_ms=20__b4")
    yield made
    ledger.stop(made.server, made.out)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles, trials and simulations as short as can be, with figures from the log of the same loads; and no page."""
    monkeypatch.setattr(experiments.measure.cli, "report", lambda *_: None)
    for room in (judging.slo_model, experiments.measure.slo_profile):
        monkeypatch.setattr(room, "PROFILE_S", 1.0)
    for name, changed in (("ENOUGH_S", 3.0), ("ENOUGH_OVER", 10), ("ENOUGH_RELAXES", 6), ("NEAR_ENOUGH", 0.1)):
        monkeypatch.setattr(experiments.measure.slo, name, changed)
    monkeypatch.setattr(experiments.measure.rate_at_slo, "Sought", partial(Sought, simulated=100_000))


@pytest.fixture
def asked(bench: Bench, capfd: pytest.CaptureFixture[str]) -> Asked:
    """Exit code and document of `brim loadtest` in this process."""

    def ask(*words: str) -> tuple[int, dict[str, Any]]:
        ended = bench.here(SLEEP, *words, "--json", "--quiet", capfd=capfd)
        return ended.code, json.loads(ended.answers)

    return ask


def test_a_rate_that_the_server_keeps_up_with_meets_its_slo_and_every_request_was_meant_when_the_schedule_says(
    bench: Bench, asked: Asked
) -> None:
    for seed in ("0", "1", "2"):  # while other work holds both cores, requests pile up before a server that keeps up
        words = ("--rate", "100", "--seconds", "3", "--slo-ms", "400", "--percentile", "95", "--seed", seed)
        code, document = asked(*words)
        (result,) = document["results"]
        folder = layout.run_folder(bench.out, result["run"])
        (load,) = disk.load_lines(Load, folder / "loads.jsonl")
        rows = read_rows(folder, load.workers)
        offsets_ns = np.load(folder / str(load.schedule))
        assert np.array_equal(np.sort(rows["intended_ns"]) - load.start_ns, offsets_ns)
        assert (load.unsent, load.sent) == (0, len(offsets_ns))
        if (code, result["verdict"]) == (0, "point"):
            break
    assert (code, result["verdict"], document["slo_rates"][SLEEP]["verdict"]) == (0, "point", "met")
    assert result["items_per_s"] == pytest.approx(100.0, rel=0.2)  # Poisson: some 240 requests after the warm-up


def test_a_rate_beyond_the_capacity_misses_its_slo_and_that_is_the_exit_code(asked: Asked) -> None:
    code, document = asked("--rate", "300", "--seconds", "2", "--slo-ms", "150", "--outstanding", "64")
    rate = document["slo_rates"][SLEEP]
    assert (code, rate["verdict"]) == (1, "missed")
    assert document["results"][0]["verdict"] == "unstable"
    assert "the client" not in document["results"][0]["reasons"][0]


def test_larger_requests_of_the_loads_file_leave_the_rate_at_the_slo_out_and_the_peak_is_measured(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments.measure.send, "LOAD_LIMIT_SECONDS", 2.0)
    loads = tmp_path / "loads.toml"
    loads.write_text("items_per_request = 4\nwindow_seconds = 1\nwindow_batches = 10")
    code, document = asked("--slo-ms", "auto", "--loads", str(loads), "--concurrency", "4", "--no-cross-check")
    (result,) = document["results"]
    assert (code, result["verdict"]) in ((0, "point"), (4, "unstable")), "as this machine is quiet or not"
    assert (document["slo_rates"], result["at"]["items_per_request"]) == ({}, 4)
    assert {probe["purpose"] for probe in result["probes"]} == {"figure"}


def test_an_slo_below_the_service_time_is_unattainable_and_the_service_time_is_told(bench: Bench, asked: Asked) -> None:
    code, document = asked("--slo-ms", "15", "--slo-only", "--model-free")  # its profile is half as long
    rate = document["slo_rates"][SLEEP]
    assert (code, rate["verdict"], rate["items_per_s"]) == (1, "unattainable", None)
    log = logged(bench, disk.load_lines(Load, bench.runs()[-1] / "loads.jsonl")[0])
    taken_ms = sum(end - begin for begin, end, _ in log) / len(log) / 1e6
    assert "in the engine" in rate["reason"] and taken_ms >= 20
    assert rate["service"][0]["ms"] == pytest.approx(taken_ms, rel=0.1)
    assert document["results"] == []


def test_the_rate_at_an_slo_lies_below_the_capacity_and_is_kept_with_what_it_rests_on(
    bench: Bench, asked: Asked
) -> None:
    for _ in range(2):  # a trial that this machine sent late, as other work held it, resolves nothing
        code, document = asked("--slo-ms", "150", "--slo-only", "--slo-seconds", "40")
        told = document["slo_rates"][SLEEP]
        if told["verdict"] == "resolved":
            break
    assert (code, told["verdict"]) == (0, "resolved"), told["reason"]
    run = bench.runs()[-1]
    kept = disk.load(SloRate, run / "slo.json")
    loads = {load.index: load for load in disk.load_lines(Load, run / "loads.jsonl")}
    assert {loads[trial.load].purpose for trial in kept.trials} == {"trial"}
    profile = {load.point.concurrency: load for load in loads.values() if load.purpose == "profile"}
    assert set(profile) == {1, 2, 4, 8}
    log = logged(bench, profile[8])
    full_s = (log[-1][0] - log[0][0]) / 1e9 / sum(items for _, _, items in log[:-1])
    assert kept.capacity_items_per_s == pytest.approx(1 / full_s, rel=0.05)
    assert kept.items_per_s == told["items_per_s"]
    assert kept.items_per_s is not None and 0.6 / full_s < kept.items_per_s < 1 / full_s


def logged(bench: Bench, load: Load) -> list[tuple[int, int, int]]:
    """The batches that the server itself logged during the load."""
    log = read_executions(layout.server_folder(bench.out, bench.server.id), SLEEP)
    return [batch for batch in log if load.start_ns < batch[0] and batch[1] < load.end_ns]


def test_a_signal_in_the_middle_of_the_search_ends_it_and_keeps_what_it_found(bench: Bench) -> None:
    before = set(bench.runs())
    running = subprocess.Popen(
        bench.command(SLEEP, "--slo-ms", "150", "--slo-only"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=layout.CHECKOUT,
    )  # fmt: skip
    until("a load is sent", lambda: any((run / "loads.jsonl").exists() for run in set(bench.runs()) - before))
    running.send_signal(signal.SIGTERM)
    _, stderr = running.communicate(timeout=60)
    (run,) = set(bench.runs()) - before
    assert running.returncode == 143, stderr
    assert disk.load(SloRate, run / "slo.json").verdict == "aborted"
    assert disk.load(Run, run / "run.json").status == "closed"
