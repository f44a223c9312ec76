"""`brim loadtest` at a rate, and for the rate at an SLO, on the real Triton: what it answers, keeps and exits with."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from brim import disk, layout
from brim.records import Load, Run, SloRate
from loadtest.rows import read_rows
from serve import ledger
from tests.measuring import Bench, start, until

pytestmark = pytest.mark.contract

SLEEP = "sleep__b8"  # 20 ms a batch of 8: some 375 items/s with full batches


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = start(tmp_path_factory.mktemp("rates"), "sleep:service_ms=20__b8")
    yield made
    ledger.stop(made.server, made.out)


def asked(bench: Bench, *words: str) -> tuple[int, dict[str, Any]]:
    done = bench.brim(SLEEP, *words, "--json", "--quiet")
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_rate_that_the_server_keeps_up_with_meets_its_slo_and_every_request_was_meant_when_the_schedule_says(
    bench: Bench,
) -> None:
    code, document = asked(bench, "--rate", "100", "--seconds", "5", "--slo-ms", "150")
    (result,) = document["results"]
    assert (code, result["verdict"], document["slo_rates"][SLEEP]["verdict"]) == (0, "point", "met")
    assert result["items_per_s"] == pytest.approx(100.0, rel=0.15)  # Poisson: some 400 requests after the warm-up
    folder = layout.run_folder(bench.out, result["run"])
    (load,) = disk.load_lines(Load, folder / "loads.jsonl")
    rows = read_rows(folder, load.workers)
    offsets_ns = np.load(folder / str(load.schedule))
    assert np.array_equal(np.sort(rows["intended_ns"]) - load.start_ns, offsets_ns)
    assert (load.unsent, load.sent) == (0, len(offsets_ns))


def test_a_rate_beyond_the_capacity_misses_its_slo_and_that_is_the_exit_code(bench: Bench) -> None:
    code, document = asked(bench, "--rate", "600", "--seconds", "5", "--slo-ms", "150", "--outstanding", "64")
    rate = document["slo_rates"][SLEEP]
    assert (code, rate["verdict"]) == (1, "missed")
    assert document["results"][0]["verdict"] == "unstable"


def test_an_slo_below_the_service_time_is_unattainable_and_the_service_time_is_told(bench: Bench) -> None:
    code, document = asked(bench, "--slo-ms", "15", "--slo-only")
    rate = document["slo_rates"][SLEEP]
    assert (code, rate["verdict"], rate["items_per_s"]) == (1, "unattainable", None)
    assert "in the engine" in rate["reason"] and rate["service"][0]["ms"] == pytest.approx(20.5, abs=1.0)
    assert document["results"] == []


def test_the_rate_at_an_slo_lies_below_the_capacity_and_is_kept_with_what_it_rests_on(bench: Bench) -> None:
    code, document = asked(bench, "--slo-ms", "150", "--slo-only", "--slo-seconds", "40")
    told = document["slo_rates"][SLEEP]
    assert code == 0 and told["verdict"] in ("resolved", "not_resolvable")  # a busy machine may need more time
    run = bench.runs()[-1]
    kept = disk.load(SloRate, run / "slo.json")
    assert kept.items_per_s == told["items_per_s"]
    loads = {load.index: load for load in disk.load_lines(Load, run / "loads.jsonl")}
    assert {loads[trial.load].purpose for trial in kept.trials} == {"trial"}
    assert {load.point.concurrency for load in loads.values() if load.purpose == "profile"} == {1, 2, 8, 16}
    assert kept.capacity_items_per_s == pytest.approx(375, rel=0.1)
    assert kept.items_per_s is not None and 250 < kept.items_per_s < 375


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
