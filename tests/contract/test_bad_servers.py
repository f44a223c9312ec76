"""`brim loadtest` at a rate, for the rate at an SLO and beyond it, against servers that reject, stall, reset, answer
garbage or die: the exit code, one line that says why, every row on disk, and no process or shared memory left.

The fake server and Triton count what they answered: that is the truth. The command runs in this process, with loads
as short as its endings allow.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

import experiments.measure.cli
import experiments.measure.rate_at_slo
import experiments.measure.send
import experiments.measure.slo
import experiments.measure.slo_profile
import experiments.overload.plan
import experiments.overload.run
import judging.slo_model
from brim import disk, layout
from brim.records import Load, Overload, Run, Saturation, Slo, SloRate, Status
from experiments.measure.slo_profile import Sought
from loadtest.rows import read_rows
from serve import ledger
from serve.executions import read_executions
from tests.fakes import FakeServer, Fault
from tests.measuring import Bench, Heard, children_of, gone, heard, row_bytes, start, until

pytestmark = pytest.mark.contract

LOADS = "request_timeout_seconds = 1\ndrain_seconds = 1\nsamples = 4\n"
INPUTS = "brim-inputs-*"


@dataclass(frozen=True, kw_only=True)
class Ended(Heard):
    """A command's end with the run that it left."""

    run: Path
    loads: list[Load]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "loads.toml").write_text(LOADS)
    return folder


@pytest.fixture
def brim(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """`brim loadtest` in this process: what it measured must be kept, and nothing else left."""

    def run(out: Path, *words: str) -> Ended:
        children, shared = children_of(os.getpid()), set(Path("/dev/shm").glob(INPUTS))
        before = set(layout.runs(out).glob("*"))
        ended = heard(out, *words, "--loads", str(out / "loads.toml"), capfd=capfd)
        assert [p for p in children_of(os.getpid()) if p not in children] == []
        assert set(Path("/dev/shm").glob(INPUTS)) <= shared
        (folder,) = set(layout.runs(out).glob("*")) - before
        return Ended(code=ended.code, answers=ended.answers, errors=ended.errors, run=folder, loads=booked(folder))

    return run


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The overload test, and that of a killed server, have one drawn of what is left."""
    monkeypatch.setattr(experiments.measure.cli, "report", lambda *_: None)


def booked(run: Path) -> list[Load]:
    """The loads of a closed run, each with all of its rows."""
    assert disk.load(Run, run / "run.json").status == "closed"
    loads = disk.load_lines(Load, run / "loads.jsonl")
    for load in loads:
        of_status = [int((read_rows(run, load.workers)["status"] == status).sum()) for status in Status]
        assert of_status == [load.ok, load.rejected, load.timed_out, load.failed, load.cancelled]
        assert sum(of_status) == load.sent > 0
    assert (run / "requests.parquet").stat().st_size > 0
    return loads


def in_turn(*faults: Fault) -> Callable[[int], Fault]:
    return lambda ordinal: faults[ordinal % len(faults)]


# ---------------------------------------------------------------------------- at a rate


@pytest.mark.usefixtures("no_page")
def test_at_a_rate_rejections_resets_garbage_and_silence_are_told_apart_and_miss_its_slo(
    out: Path, brim: Callable[..., Ended]
) -> None:
    faults: list[Fault] = ["", "queue_full", "reset", "garbage", "truncated", "server_error", "never"]
    with FakeServer(fault=in_turn(*faults)) as server:
        ended = brim(out, server.url, "tiny", "--rate", "140", "--seconds", "1.5", "--slo-ms", "200")
    assert (ended.code, ended.errors[-1]) == (1, "brim: exit 1 (missed)")
    assert "tiny  no number FAILING: 85." in ended.answers
    (load,) = ended.loads
    seen = server.faults
    failed = sum(seen[fault] for fault in ("reset", "garbage", "truncated", "server_error"))
    assert (load.ok, load.rejected, load.timed_out, load.failed) == (
        seen[""], seen["queue_full"], seen["never"], failed,
    )  # fmt: skip
    assert (load.unsent, load.ended) == (0, "finished")
    kept = disk.load(SloRate, ended.run / "slo.json")
    assert kept.verdict == "missed" and re.search("; 1[0-9].*% of .* were answered within 200 ms", kept.reason)
    assert set(load.errors.values()) >= {seen["queue_full"], seen["garbage"], seen["never"]}


@pytest.mark.usefixtures("no_page")
def test_a_rate_that_no_client_can_send_is_said_to_be_none_and_counted(out: Path, brim: Callable[..., Ended]) -> None:
    with FakeServer() as server:
        ended = brim(out, server.url, "tiny", "--rate", "2e6", "--arrivals", "constant", "--seconds", "1.5")
    (load,) = ended.loads
    assert (ended.code, ended.errors[-1]) == (4, "brim: exit 4 (unstable)")
    assert load.sent + load.unsent == 3_000_000
    assert load.ok > 100 and load.unsent > 2_500_000
    assert f"{load.unsent} of 3000000 requests were due and never sent" in ended.answers


# ---------------------------------------------------------------------------- a real server


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = start(
        tmp_path_factory.mktemp("bad"), "stall:service_ms=5,at_s=1,stall_ms=800__b8",
        "reject:service_ms=40,queue=4__b8", "sleep:service_ms=5__b8",
    )  # fmt: skip
    (made.out / "loads.toml").write_text(LOADS.replace("= 1", "= 5"))
    yield made
    ledger.stop(made.server, made.out)


@pytest.mark.usefixtures("no_page")
def test_a_stall_misses_the_slo_of_a_rate_and_what_was_due_in_it_is_kept(
    bench: Bench, brim: Callable[..., Ended]
) -> None:
    ended = brim(bench.out, "stall__b8", "--rate", "100", "--seconds", "3", "--slo-ms", "200", "--arrivals", "constant")
    assert (ended.code, ended.errors[-1]) == (1, "brim: exit 1 (missed)")
    (load,) = ended.loads
    assert (load.ok, load.sent, load.unsent) == (300, 300, 0)
    rows = read_rows(ended.run, load.workers)
    waited_ms = (rows["done_ns"] - rows["intended_ns"]) / 1e6
    assert 50 <= (waited_ms > 200).sum() <= 80, "600 ms of the 800 ms, at 100/s"
    assert "the server answered nothing while" in ended.answers
    log = read_executions(layout.server_folder(bench.out, bench.server.id), "stall__b8")
    assert max(end - begin for begin, end, _ in log) > 800e6


@pytest.mark.usefixtures("no_page")
def test_a_bounded_queue_rejects_what_is_beyond_it_and_the_log_of_the_server_agrees(
    bench: Bench, brim: Callable[..., Ended]
) -> None:
    """Batches of 8 each 40 ms are 200/s: of 500/s most find four waiting."""
    ended = brim(bench.out, "reject__b8", "--rate", "500", "--seconds", "1.5")
    assert (ended.code, ended.errors[-1]) == (4, "brim: exit 4 (failing)")
    (load,) = ended.loads
    log = read_executions(layout.server_folder(bench.out, bench.server.id), "reject__b8")
    assert load.ok == sum(items for begin, _, items in log if begin > load.start_ns)
    assert load.rejected > 0.3 * load.sent and load.ok + load.rejected == load.sent
    assert all("Exceeds maximum queue size" in error for error in load.errors)


def test_a_second_measurement_waits_its_turn_and_a_server_that_is_killed_ends_the_first_with_its_rows(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    before = set(bench.runs())
    first = subprocess.Popen(
        bench.command("sleep__b8", "--rate", "100", "--seconds", "60", "--transport", "shared-memory"),
        cwd=layout.CHECKOUT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        until("rows on disk", lambda: row_bytes(bench) > 32 * 50 or first.poll() is not None)
        (run,) = set(bench.runs()) - before
        assert list(Path("/dev/shm").glob(f"brim-inputs-{run.name}-*"))
        senders = children_of(first.pid)
        for lock, told in (
            ("measuring.lock", "another brim is measuring on this machine; wait for it"),
            ("other.lock", f"the server {bench.server.id} is being measured; wait for it"),
        ):
            refused = heard(bench.out, "sleep__b8", "--rate", "10", capfd=capfd, lock=lock)
            assert (refused.code, refused.errors[-1]) == (6, "brim: exit 6 (resources)")
            assert any(told in line for line in refused.errors)
        assert bench.server.pid is not None
        os.kill(bench.server.pid, signal.SIGKILL)
        answers, errors = first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 5, errors
    assert errors.splitlines()[-1] == "brim: exit 5 (server_lost)"
    assert "Traceback" not in errors and "SERVER_LOST" in answers
    assert set(bench.runs()) - before == {run}, "who was refused opened nothing"
    (load,) = booked(run)
    assert load.ended == "server_lost" and load.ok >= 50
    assert disk.load(Saturation, run / "saturation.json").verdict == "server_lost"
    until("the senders have ended", lambda: gone(senders))
    assert not list(Path("/dev/shm").glob(f"brim-inputs-{run.name}-*"))


# ---------------------------------------------------------------------------- for the rate at an SLO, and beyond it

SEARCH = ("--slo-ms", "100", "--slo-only")


def one_by_one() -> FakeServer:
    """One request at a time, each 4 ms: 250/s at most."""
    return FakeServer(service_s=0.004, slots=1, max_batch=1)


def begun(number: int, out: Path) -> None:
    """Wait until the run prepares the load of that number, from 1."""
    until(f"load {number}", lambda: len(list(out.glob("runs/*/raw/*-locust"))) >= number, within_s=60)


def die(server: FakeServer) -> None:
    answered = len(server.log)
    until("it is at work", lambda: len(server.log) > answered + 20)
    server.stop()


@pytest.mark.usefixtures("no_page")
def test_a_search_ends_where_single_requests_are_not_answered(out: Path, brim: Callable[..., Ended]) -> None:
    with FakeServer(fault=in_turn("queue_full", "reset")) as server:
        ended = brim(out, server.url, "tiny", *SEARCH)
    assert (ended.code, ended.errors[-1]) == (4, "brim: exit 4 (failing)")
    assert disk.load(SloRate, ended.run / "slo.json").reason.startswith("100.0% of single requests were not answered")
    assert [load.purpose for load in ended.loads] == ["profile"]


@pytest.fixture
def short_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long enough for what is not to be believed."""
    for room in (judging.slo_model, experiments.measure.slo_profile):
        monkeypatch.setattr(room, "PROFILE_S", 0.7)
    monkeypatch.setattr(experiments.measure.rate_at_slo, "Sought", partial(Sought, simulated=50_000))


@pytest.mark.usefixtures("no_page")
def test_a_search_whose_trial_meets_garbage_fails_and_says_at_which_rate(
    out: Path, brim: Callable[..., Ended], short_profile: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, least in (("ENOUGH_S", 3.0), ("ENOUGH_OVER", 1), ("ENOUGH_RELAXES", 1)):
        monkeypatch.setattr(experiments.measure.slo, name, least)

    def misbehave(server: FakeServer) -> None:
        begun(3, out)
        server.fault = in_turn("garbage", "", "", "")

    with one_by_one() as server, ThreadPoolExecutor() as beside:
        script = beside.submit(misbehave, server)
        ended = brim(out, server.url, "tiny", *SEARCH)
        script.result()
    assert (ended.code, ended.errors[-1]) == (4, "brim: exit 4 (failing)")
    assert [load.purpose for load in ended.loads] == ["profile", "profile", "trial"]
    found = disk.load(SloRate, ended.run / "slo.json")
    assert (found.verdict, found.items_per_s, len(found.trials)) == ("failing", None, 1)
    assert f"at {found.trials[0].items_per_s:.4g} items/s 2" in found.reason and "% of the requests" in found.reason
    assert ended.loads[-1].failed == server.faults["garbage"] == pytest.approx(ended.loads[-1].sent / 4, abs=1)


@pytest.mark.usefixtures("no_page")
def test_a_search_whose_server_dies_in_a_trial_keeps_what_it_sent(
    out: Path, brim: Callable[..., Ended], short_profile: None
) -> None:
    def misbehave(server: FakeServer) -> None:
        begun(3, out)
        die(server)

    with one_by_one() as server, ThreadPoolExecutor() as beside:
        script = beside.submit(misbehave, server)
        ended = brim(out, server.url, "tiny", *SEARCH)
        script.result()
    assert (ended.code, ended.errors[-1]) == (5, "brim: exit 5 (server_lost)")
    assert [load.purpose for load in ended.loads] == ["profile", "profile", "trial"]
    assert ended.loads[-1].ended == "server_lost" and ended.loads[-1].ok >= 20
    found = disk.load(SloRate, ended.run / "slo.json")
    assert (found.verdict, found.items_per_s) == ("server_lost", None)
    assert "does not answer" in found.reason and found.capacity_items_per_s is not None


def test_overload_counts_rejections_and_garbage_apart_and_keeps_both_when_the_server_dies(
    out: Path, brim: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate is given instead of searched, stretches are short, and none is sent twice, however late it is sent."""
    rate = SloRate(
        slo=Slo(limit_ms=100, percentile=99), items_per_s=100.0, ci95=(90.0, 110.0), given="data", verdict="resolved",
        capacity_items_per_s=200.0,
    )  # fmt: skip
    monkeypatch.setattr(experiments.measure.rate_at_slo, "search", lambda *_, **__: rate)
    monkeypatch.setattr(experiments.overload.run, "late_words", lambda *_: "")
    for name, least in (("STRETCH_LEAST_S", 1.5), ("STRETCH_LIMITS", 1)):
        monkeypatch.setattr(experiments.overload.plan, name, least)

    def misbehave(server: FakeServer) -> None:
        for number, faults in ((1, ("", "queue_full")), (2, ("garbage", "reset", "")), (3, ("",))):
            begun(number, out)
            server.fault = in_turn(*faults)
        server.stop()

    with one_by_one() as server, ThreadPoolExecutor() as beside:
        script = beside.submit(misbehave, server)
        ended = brim(out, server.url, "tiny", *SEARCH, "--overload")
        script.result()
    assert (ended.code, ended.errors[-1]) == (5, "brim: exit 5 (server_lost)")
    rejecting, failing = ended.loads
    assert rejecting.rejected == server.faults["queue_full"] == pytest.approx(rejecting.sent / 2, abs=1)
    assert failing.failed == server.faults["garbage"] + server.faults["reset"]
    kept = disk.load(SloRate, ended.run / "slo.json")
    assert (kept.items_per_s, kept.verdict) == (100.0, "resolved"), "what came before"
    found = disk.load(Overload, ended.run / "overload.json")
    assert [point.load for point in found.points] == [rejecting.index, failing.index]
    assert found.points[0].rejected > 0 == found.points[0].failed
    assert found.points[1].failed > 0 == found.points[1].rejected
    assert f"ended early at 1 x the rate under {found.points[0].policy}" in found.why
