"""The driver against scripts that stand in for perf_analyzer and do what it has been seen to do, or worse."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from brim import guard
from brim.errors import NotReady, UsageError
from brim.records import Access, LoadPoint, Status, Target, TargetLimit, Tensor
from loadtest import payload, prepared
from loadtest import perf_analyzer_command as command
from loadtest import perf_analyzer_memory as memory
from loadtest.driver import LoadResult, LoadSpec
from loadtest.perf_analyzer_driver import PerfAnalyzerDriver, available
from loadtest.rows import read_rows

DATA = Path(__file__).parent.parent / "data" / "perf_analyzer"
CSV = f'while [ "$1" != -f ]; do shift; done; cp {DATA}/sleep.csv "$2"\n'
TRACE = f"cat {DATA}/trace.txt\n"  # 16 requests, 12 answered


def a_stub(folder: Path, script: str) -> Path:
    file = folder / "perf_analyzer"
    file.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{script}')
    file.chmod(0o755)
    return file


@pytest.fixture
def listening() -> Iterator[str]:
    """A port where somebody answers, as far as connecting goes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def a_spec(tmp_path: Path, url: str, **changed: object) -> LoadSpec:
    target = Target(
        url=url, model="sleep", version="", inputs=(Tensor(name="x", dtype="FP32", shape=(16,)),),
        outputs=(Tensor(name="y", dtype="FP32", shape=(16,)),), max_batch=8, instances=1, server_name="s",
        server_version="2.51.0",
    )  # fmt: skip
    folder = payload.prepare(target, tmp_path / "payload", items_per_request=2, input_data=None, seed=0, pool=3)
    told: dict[str, object] = dict(
        url=url, model="sleep", version="", point=LoadPoint(concurrency=4, items_per_request=2),
        payload=str(folder), folder=str(tmp_path / "load"), rows=str(tmp_path / "requests"), first_worker=7,
        seconds=0.36, timeout_s=30.0, drain_s=1.0, samples=0,
    )  # fmt: skip
    return LoadSpec(**{**told, **changed})  # type: ignore[arg-type]  # the fields of a LoadSpec


def run(tmp_path: Path, url: str, script: str, **changed: object) -> LoadResult:
    spec = a_spec(tmp_path, url, **changed)
    driver = PerfAnalyzerDriver(binary=a_stub(tmp_path, script), libraries=tmp_path, batched=True)
    return driver.start(spec, Path(spec.folder)).finish()


def test_a_good_run_has_a_row_for_each_request_and_cancels_those_in_flight(tmp_path: Path, listening: str) -> None:
    result = run(tmp_path, listening, TRACE + CSV)
    assert (result.ended, result.workers) == ("finished", (7,))
    assert (result.sent, result.ok, result.cancelled, result.items_ok) == (16, 12, 4, 24)
    rows = read_rows(tmp_path)
    assert sorted(rows["status"].tolist()) == [Status.OK] * 12 + [Status.CANCELLED] * 4
    assert (rows["items"] == 2).all()
    assert (rows["done_ns"] >= rows["sent_ns"]).all()


def test_a_summary_that_the_rows_contradict_is_told(tmp_path: Path, listening: str) -> None:
    result = run(tmp_path, listening, TRACE + f"cat {DATA}/summary.txt\n" + CSV)  # 33 requests; the trace answers 12
    assert result.ended == "finished"
    assert result.reason == "perf_analyzer reports 33 requests in 0.37 s, its trace shows 12"


def test_exit_0_without_a_csv_is_a_crash_whose_rows_are_kept(tmp_path: Path, listening: str) -> None:
    result = run(tmp_path, listening, TRACE)
    assert (result.ended, result.ok) == ("crashed", 12)
    assert "CSV has no row" in result.reason


def test_a_sweep_that_left_our_concurrency_out_is_a_crash(tmp_path: Path, listening: str) -> None:
    point = LoadPoint(concurrency=8, items_per_request=2)
    assert run(tmp_path, listening, TRACE + CSV, point=point).ended == "crashed"


def test_an_unstable_run_is_a_crash_with_its_own_words(tmp_path: Path, listening: str) -> None:
    result = run(tmp_path, listening, TRACE + "echo 'Failed to obtain stable measurement.' >&2; exit 2")
    assert (result.ended, result.errors) == ("crashed", {"Failed to obtain stable measurement.": 1})


def test_output_that_is_not_utf8_does_no_harm(tmp_path: Path, listening: str) -> None:
    noise = r"printf '\377\376\000\033[2J\n'; printf 'bad\377\033[2J\007\n' >&2; "
    result = run(tmp_path, listening, noise + TRACE + "exit 99")
    assert (result.ended, result.errors) == ("crashed", {"bad\ufffd": 1})


def test_a_failed_request_is_one_failed_row(tmp_path: Path, listening: str) -> None:
    result = run(tmp_path, listening, TRACE + f"cat {DATA}/batch_too_large.stderr >&2; exit 99")
    assert (result.ended, result.failed, result.cancelled) == ("crashed", 1, 3)
    assert result.errors["inference request batch-size must be <= 8 for 'sleep'"] == 1


def test_a_crash_while_nobody_listens_means_that_the_server_is_lost(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    assert run(tmp_path, url, TRACE + "exit 99").ended == "server_lost"


def test_a_perf_analyzer_that_hangs_is_killed_and_its_rows_are_kept(
    tmp_path: Path, listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtest.perf_analyzer_driver.START_UP_S", 0.3)
    begun = time.monotonic()
    result = run(tmp_path, listening, TRACE + "trap '' INT; while :; do sleep 1; done", drain_s=0.1, timeout_s=0.1)
    assert time.monotonic() - begun < 5
    assert (result.ended, result.ok, result.timed_out) == ("crashed", 12, 4)
    assert "did not end within" in result.reason


def test_stop_interrupts_once_and_a_second_stop_does_nothing(tmp_path: Path, listening: str) -> None:
    spec = a_spec(tmp_path, listening)
    trap = f"trap 'echo INT >> {tmp_path}/signals; exit 0' INT\n"
    script = f"{trap}{TRACE}touch {tmp_path}/ready\nwhile :; do sleep 0.05; done"
    load = PerfAnalyzerDriver(binary=a_stub(tmp_path, script), libraries=tmp_path, batched=True).start(
        spec, Path(spec.folder)
    )
    wait_for(tmp_path / "ready")
    load.stop()
    load.stop()
    result = load.finish()
    load.stop()
    assert (result.ended, result.ok) == ("stopped", 12)
    assert (tmp_path / "signals").read_text() == "INT\n"
    assert not load.running()


def test_a_stop_that_is_not_heard_ends_when_the_drain_is_over(tmp_path: Path, listening: str) -> None:
    script = f"trap '' INT\n{TRACE}touch {tmp_path}/ready\nwhile :; do sleep 0.05; done"
    spec = a_spec(tmp_path, listening, drain_s=0.5, seconds=60.0)
    stub = a_stub(tmp_path, script)
    load = PerfAnalyzerDriver(binary=stub, libraries=tmp_path, batched=True).start(spec, Path(spec.folder))
    wait_for(tmp_path / "ready")
    load.stop()
    result = load.finish()
    assert (result.ended, result.ok, result.cancelled) == ("stopped", 12, 4)


def test_its_processor_time_is_that_of_the_child(tmp_path: Path, listening: str) -> None:
    burn = f"{sys.executable} -c 'import time\nwhile time.process_time() < 0.3: pass'\n"
    assert 0.3 <= run(tmp_path, listening, TRACE + burn + CSV).client_cpu_s < 3


def test_perf_analyzer_does_not_outlive_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import subprocess, os\nfrom loadtest import supervise\n"
        "child = subprocess.Popen(supervise.command(['/bin/sh', '-c', 'echo $$; exec sleep 60']),"
        " stdout=subprocess.PIPE, start_new_session=True)\n"
        "print(child.stdout.readline().decode().strip(), flush=True)\n"
        "os._exit(0)\n"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
    pid, deadline = int(told.stdout), time.monotonic() + 5
    while is_running(pid):
        assert time.monotonic() < deadline, f"{pid} still runs"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        (None, 0, "is not at"),
        ("#!/bin/sh\nexit 0\n", 0o644, "Permission denied"),
        ("\x7fELF not for this machine", 0o755, "Exec format error"),
        ('#!/bin/sh\necho "x: version \\`GLIBC_2.99\' not found" >&2; exit 1\n', 0o755, "GLIBC_2.99"),
        ("#!/bin/sh\necho 'libb64.so.0d: cannot open shared object file' >&2; exit 127\n", 0o755, "libb64"),
    ],
)
def test_one_line_tells_why_perf_analyzer_cannot_run(
    tmp_path: Path, listening: str, content: str | None, mode: int, why: str
) -> None:
    binary = tmp_path / "perf_analyzer"
    if content is not None:
        binary.write_text(content)
        binary.chmod(mode)
    told = available(binary, tmp_path)
    assert told is not None
    assert why in told
    assert "\n" not in told
    spec = a_spec(tmp_path, listening)
    with pytest.raises(NotReady, match="perf_analyzer"):
        PerfAnalyzerDriver(binary=binary, libraries=tmp_path, batched=True).start(spec, tmp_path / "load")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"point": LoadPoint(mode="open", rate_per_s=5.0, arrivals="gamma", cv=2.0, outstanding=9)}, "no gamma"),
        ({"point": LoadPoint(concurrency=1, transport="cuda_shared_memory")}, "CUDA"),
        ({"point": LoadPoint(concurrency=1, compression="gzip")}, "compress"),
        ({"access": Access(headers={"Authorization": "/dev/null"})}, "every user"),
        ({"url": "http://192.0.2.1:8000"}, "not this machine"),
        (
            {
                "url": "http://192.0.2.1:8000",
                "allowed": {"192.0.2.1": TargetLimit(host="192.0.2.1", max_rate_per_s=5.0)},
            },
            "keeps to no rate",
        ),
    ],
)
def test_a_load_that_it_cannot_send_as_meant_is_refused(tmp_path: Path, changed: dict[str, object], why: str) -> None:
    spec = dataclasses.replace(a_spec(tmp_path, "http://127.0.0.1:1"), **changed)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=why):
        PerfAnalyzerDriver(binary=a_stub(tmp_path, "exit 0"), libraries=tmp_path).start(spec, tmp_path / "load")


def test_its_input_data_are_the_bytes_that_the_other_senders_send(tmp_path: Path) -> None:
    spec = a_spec(tmp_path, "http://127.0.0.1:1")
    file = command.write_input_data(Path(spec.payload), lambda: True)
    steps = json.loads(file.read_text())["data"]
    sent = np.concatenate([payload.read_inputs(Path(spec.payload), member)["x"] for member in range(3)])
    told = [np.frombuffer(base64.b64decode(step["x"]["content"]["b64"]), "<f4") for step in steps]
    assert [step["x"]["shape"] for step in steps] == [[16]] * 6
    np.testing.assert_array_equal(np.stack(told), sent)


def test_the_address_is_numeric_and_judged_and_three_windows_last_the_seconds_asked_for(tmp_path: Path) -> None:
    spec = a_spec(tmp_path, "http://[::1]:8000", seconds=12.0)
    address = guard.Address(family=socket.AF_INET6, host="::1", port=8000, loopback=True)
    told = command.arguments(spec, address, Path("in.json"), Path("out.csv"))
    assert told[told.index("-u") + 1] == "[::1]:8000"
    assert told[told.index("--measurement-interval") + 1] == "3333"  # 3 windows of 1.2 x 3.333 s are 12 s


def test_no_proxy_of_the_user_comes_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:3128")
    assert "http_proxy" not in command.environment(Path("/lib"))


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 10
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} did not appear"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_over_grpc_and_tls_it_is_told_the_protocol_the_memory_and_the_files_by_name(tmp_path: Path) -> None:
    spec = a_spec(
        tmp_path, "grpcs://127.0.0.1:1",
        point=LoadPoint(concurrency=4, protocol="grpc", transport="shared_memory", compression="gzip"),
        access=Access(tls_ca="/ca.pem", tls_cert="/our.pem", tls_key="/our.key"),
    )  # fmt: skip
    told = command.arguments(spec, command.check(spec), tmp_path / "data", tmp_path / "csv")
    pairs = list(zip(told, told[1:], strict=False))
    for pair in (
        ("-i", "grpc"), ("-u", "127.0.0.1:1"), ("--shared-memory", "system"), ("--grpc-compression-algorithm", "gzip"),
        ("--ssl-grpc-use-ssl", "true"), ("--ssl-grpc-root-certifications-file", "/ca.pem"),
        ("--ssl-grpc-certificate-chain-file", "/our.pem"), ("--ssl-grpc-private-key-file", "/our.key"),
    ):  # fmt: skip
        assert pair in pairs


@pytest.fixture
def shm(tmp_path: Path) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    (folder / "x_0_7").touch()  # somebody else's
    return folder


def claimed(tmp_path: Path, shm: Path) -> memory.Claimed:
    sent = prepared.load(Path(a_spec(tmp_path, "http://127.0.0.1:1").payload))
    return memory.Claimed("http://127.0.0.1:1", Access(), sent, shm)


def left_behind(shm: Path) -> None:
    for name in ("x_0_0", "x_0_12", "y", "x", "y_0_0", "brim-inputs-1"):
        (shm / name).touch()


def test_what_a_perf_analyzer_leaves_in_shared_memory_is_taken_away_and_nothing_else(tmp_path: Path, shm: Path) -> None:
    claim = claimed(tmp_path, shm)
    left_behind(shm)
    assert memory.sweep(shm) == []  # Brim lives
    claim.release()
    assert {file.name for file in shm.iterdir()} == {"x_0_7", "x", "y_0_0", "brim-inputs-1"}


def test_what_perf_analyzer_leaves_is_swept_once_neither_brim_nor_perf_analyzer_lives(
    tmp_path: Path, shm: Path
) -> None:
    claim = claimed(tmp_path, shm)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(claim.handle,)) as perf_analyzer:
        os.close(claim.handle)  # as the kernel does when Brim is killed
        left_behind(shm)
        assert memory.sweep(shm) == []
        perf_analyzer.kill()
    assert sorted(memory.sweep(shm)) == ["x_0_0", "x_0_12", "y"]
    assert {file.name for file in shm.iterdir()} == {"x_0_7", "x", "y_0_0", "brim-inputs-1"}
    assert memory.sweep(shm) == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema": 1}', b"\xff"])
def test_a_claim_that_a_kill_cut_short_names_nothing_and_goes(shm: Path, content: bytes) -> None:
    (shm / f"{memory.PREFIX}half").write_bytes(content)
    assert memory.sweep(shm) == []
    assert [file.name for file in shm.iterdir()] == ["x_0_7"]


def test_a_claim_of_another_user_is_let_alone(tmp_path: Path, shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.close(claimed(tmp_path, shm).handle)
    left_behind(shm)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert memory.sweep(shm) == []
    assert (shm / "x_0_0").exists()


def test_whatever_goes_wrong_at_the_end_there_is_a_result_from_the_rows(
    tmp_path: Path, listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **more: object) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("loadtest.perf_analyzer_output.disagreement", broken)
    result = run(tmp_path, listening, TRACE + CSV)
    assert (result.ended, result.reason) == ("crashed", "bug: RuntimeError('unforeseen')")


def test_memory_that_cannot_be_taken_away_spoils_no_figure(
    tmp_path: Path, listening: str, shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = prepared.load(Path(a_spec(tmp_path, listening).payload))
    monkeypatch.setattr(
        "loadtest.perf_analyzer_driver._claimed",
        lambda spec: memory.Claimed("http://127.0.0.1:1", spec.access, sent, shm),
    )
    script = TRACE + CSV + f"mkdir {shm}/y\n"  # a folder cannot be unlinked
    assert run(tmp_path, listening, script).ended == "finished"
    assert len(list(shm.glob(f"{memory.PREFIX}*"))) == 1  # the next sweep tries again
