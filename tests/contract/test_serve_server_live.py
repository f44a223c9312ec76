"""The real tritonserver: started, identified, watched, stopped; and what happens when any of that goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from brim import disk, layout
from brim.errors import NotReady
from brim.kserve import KServe
from brim.records import ModelCard, Server, Tensor
from brim.say import Say
from serve import embedded, ledger, ports, prerequisites, readiness
from serve.ports import PickedPorts, Ports

pytestmark = pytest.mark.contract

QUIET = Say(quiet=True)
CONFIG = """
name: "%s" backend: "python" max_batch_size: 4
input [{name: "INPUT0", data_type: TYPE_FP32, dims: [16]}]
output [{name: "OUTPUT0", data_type: TYPE_FP32, dims: [16]}]
instance_group [{count: 1, kind: KIND_CPU}]
"""
ECHO = """
import sys
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        pb.Logger.log_info("stub runs in " + sys.version.split()[0] + " of " + sys.prefix)

    def execute(self, requests):
        arrays = [pb.get_input_tensor_by_name(r, "INPUT0").as_numpy() for r in requests]
        return [pb.InferenceResponse([pb.Tensor("OUTPUT0", a)]) for a in arrays]
"""
BROKEN = """
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("the artifact is corrupt")
"""
#: Loads until the test is over; the deadline is there so that nothing outlives a test that fails.
ENDLESS = """
import time

class TritonPythonModel:
    def initialize(self, args):
        time.sleep(60)
"""


def until(what: str, held: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not held():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.02)


def processes_of(folder: Path) -> list[str]:
    """Every process with the test's folder in its command line: tritonserver, its stubs, and what starts them."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["pid"] != os.getpid() and any(str(folder) in word for word in words):
            found.append(f"{process.info['pid']} {' '.join(words)[:200]}")
    return found


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A folder whose servers are stopped at the end, and of which no process may be left then."""
    yield tmp_path / "out"
    for file in (tmp_path / "out" / "servers").glob("*/server.json"):
        server = disk.load(Server, file)
        if server.pid is not None and ledger.alive(server):
            os.kill(server.pid, signal.SIGKILL)  # a polite end takes seconds, and has a test of its own
        ledger.stop(server, tmp_path / "out")
    until(f"no process of {tmp_path} is left", lambda: not processes_of(tmp_path))
    left = [p.name for f in (tmp_path / "out" / "servers").glob("brim-*") for p in ledger.SHM.glob(f"{f.name}-*")]
    assert left == []


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    for name, code in (("echo__b4", ECHO), ("twin__b4", ECHO), ("broken__b4", BROKEN), ("endless__b4", ENDLESS)):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(CONFIG % name)
        (folder / name / "1" / "model.py").write_text(code)
    return folder


def start(out: Path, repository: Path, *variants: str, **options: object) -> Server:
    return embedded.start(variants, out=out, repository=repository, say=QUIET, **options)  # type: ignore[arg-type]


def states(server: Server) -> tuple[readiness.VariantState, ...]:
    return readiness.states(KServe(server.http).repository_index(), server.variants)


def test_a_server_is_ready_within_ten_seconds_knows_its_name_listens_on_loopback_and_stops(
    out: Path, repository: Path
) -> None:
    began = time.monotonic()
    server = start(out, repository, "echo__b4", "twin__b4")
    assert time.monotonic() - began < 10
    assert all(state.ready for state in states(server))
    assert server.version == "2.51.0"
    assert ledger.current(out) == server and ledger.usable(out) == server and ledger.is_ours(server)
    assert ledger.viewed(repository) == {"echo__b4", "twin__b4"}
    assert server.pid is not None
    listening = [c.laddr.ip for c in psutil.Process(server.pid).net_connections("inet") if c.status == "LISTEN"]
    assert len(listening) >= 3
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    ledger.stop(server, out)
    assert not ledger.alive(server) and not ledger.is_ours(server)
    assert ledger.current(out) is None
    assert ledger.viewed(repository) == frozenset()


def test_one_broken_variant_among_good_ones_is_named_with_its_error_and_the_others_serve(
    out: Path, repository: Path
) -> None:
    (repository / "refused__b4").mkdir()
    (repository / "refused__b4" / "config.pbtxt").write_text(CONFIG % "refused__b4" + "nonsense: 3")
    (repository / "refused__b4" / "1").mkdir()
    server = start(out, repository, "echo__b4", "broken__b4", "refused__b4")
    by_name = {state.name: state for state in readiness.states(
        KServe(server.http).repository_index(), server.variants, readiness.tail(Path(server.log or ""))
    )}  # fmt: skip
    assert by_name["echo__b4"].ready
    assert by_name["broken__b4"].reason == "ValueError: the artifact is corrupt"
    assert "failed to read text proto" in by_name["refused__b4"].reason


def test_a_server_with_nothing_to_serve_is_stopped_and_the_reason_told(out: Path, repository: Path) -> None:
    with pytest.raises(NotReady, match="no variant is ready.*broken__b4: ValueError: the artifact is corrupt"):
        start(out, repository, "broken__b4")
    assert processes_of(out) == []
    assert ledger.current(out) is None


def test_a_server_that_was_killed_is_noticed_and_cleaned_up_after(out: Path, repository: Path) -> None:
    server = start(out, repository, "echo__b4")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    until("the killed server is dead", lambda: not ledger.alive(server))
    with pytest.raises(NotReady, match=f"{server.id} has ended"):
        ledger.usable(out)
    assert ledger.viewed(repository) == frozenset()
    assert ledger.sweep(out, repository) == [server.id]
    assert ledger.current(out) is None
    assert (layout.server_folder(out, server.id) / "log").exists()


class Stranger(BaseHTTPRequestHandler):
    """Some other KServe server."""

    def do_GET(self) -> None:
        body = json.dumps({"name": "triton", "version": "2.51.0", "extensions": []}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def stranger() -> Iterator[str]:
    httpd = HTTPServer(("127.0.0.1", 0), Stranger)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_a_stranger_on_the_port_is_not_taken_for_our_server(out: Path, repository: Path, stranger: str) -> None:
    server = start(out, repository, "echo__b4")
    displaced = replace(server, http=stranger)
    ledger.make_current(displaced, out)
    assert not ledger.is_ours(displaced)
    with pytest.raises(NotReady, match=f"{stranger} is answered by 'triton', a stranger, not by {server.id}"):
        ledger.usable(out)


def test_a_port_that_is_lost_between_the_look_and_the_bind_is_tried_again(
    out: Path, repository: Path, stranger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = int(stranger.rpartition(":")[2])
    picked: list[PickedPorts] = []

    def pick_one_that_is_lost(wanted: Ports) -> PickedPorts:
        picked.append(ports.pick(wanted))
        return replace(picked[-1], http=taken) if len(picked) == 1 else picked[-1]

    monkeypatch.setattr(embedded, "pick", pick_one_that_is_lost)
    server = start(out, repository, "echo__b4")
    assert len(picked) == 2 and ledger.is_ours(server)


def test_another_python_first_on_path_does_not_matter(
    out: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "bin"
    other.mkdir()
    for name in ("python", "python3", "python3.13"):  # whatever it is asked, it says that it is of another minor
        (other / name).write_text("#!/bin/sh\necho Python 3.13.1\n")
        (other / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{other}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))
    server = start(out, repository, "echo__b4")
    version = prerequisites.probe_stub(layout.stub_python()).python
    log = "\n".join(readiness.tail(Path(server.log or "")))
    assert f"stub runs in {version} of {layout.stub_python().parent.parent}" in log


def test_a_server_can_be_pinned_to_cores_and_its_starter_is_not(out: Path, repository: Path) -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    server = start(out, repository, "echo__b4", cpus=(core,))
    assert server.pid is not None
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    assert len(family) == 2
    assert [process.cpu_affinity() for process in family] == [[core], [core]]
    assert os.sched_getaffinity(0) == before


# ---------------------------------------------------------------------------- the verbs

FRONT_DOOR = """
from pathlib import Path
from brim import layout
layout.model_repository = lambda: Path({repository!r})
from brim.cli import main
main({arguments!r})
"""
CHILD_START = """
from pathlib import Path
from brim.cli import front_door, main
import brim.cli, click
from brim.say import Say
from serve import embedded

@click.command()
def start():
    embedded.start(["endless__b4"], out=Path({out!r}), repository=Path({repository!r}), say=Say())

brim.cli.front_door = start
main([])
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def brim(repository: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    command = python(before + FRONT_DOOR.format(repository=str(repository), arguments=list(arguments)))
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=layout.CHECKOUT, stdin=subprocess.DEVNULL
    )


def test_serve_status_serve_again_and_down(out: Path, tmp_path: Path) -> None:
    repository, there = tmp_path / "fresh", ("--out", str(out))
    none = brim(repository, "status", *there)
    assert none.returncode == 3 and "`make serve` starts one" in none.stderr

    first = brim(repository, "serve", "null", "--json", *there)
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert [(v["name"].partition("__")[0], v["ready"]) for v in document["variants"]] == [("null", True)]

    status = brim(repository, "status", "--json", *there)
    assert status.returncode == 0 and json.loads(status.stdout)["server"] == document["server"]

    again = brim(repository, "serve", "null", "--json", *there)
    assert again.returncode == 0 and "serves exactly this already" in again.stderr
    assert json.loads(again.stdout)["server"] == document["server"]

    other = brim(repository, "serve", "null", "sleep", "--json", *there)
    assert other.returncode == 0 and f"stopping {document['server']['id']}: it serves" in other.stderr
    assert ledger.process_started_s(document["server"]["pid"]) is None  # gone, or not yet reaped by whoever is pid 1

    down = brim(repository, "down", *there)
    assert down.returncode == 0 and "stopped" in down.stdout
    nothing = brim(repository, "down", *there)
    assert (nothing.returncode, nothing.stdout) == (0, "nothing is running\n")


def test_a_taken_port_is_refused_before_the_server_that_works_is_stopped(
    out: Path, tmp_path: Path, stranger: str
) -> None:
    repository, there = tmp_path / "fresh", ("--out", str(out))
    assert brim(repository, "serve", "null", *there).returncode == 0
    refused = brim(repository, "serve", "null", "--http-port", stranger.rpartition(":")[2], *there)
    assert refused.returncode == 6 and f"taken by pid {os.getpid()}" in refused.stderr
    assert brim(repository, "status", *there).returncode == 0


def test_a_full_disk_is_told_and_the_server_that_works_stays(out: Path, tmp_path: Path) -> None:
    repository, there = tmp_path / "fresh", ("--out", str(out))
    assert brim(repository, "serve", "null", *there).returncode == 0
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))"
    refused = brim(repository, "serve", "sleep", *there, before=full)
    assert refused.returncode == 6 and "no room left" in refused.stderr
    assert refused.stderr.splitlines()[-1] == "brim: exit 6 (resources)"
    assert [path.name for path in repository.glob("*sleep*")] == []
    assert brim(repository, "status", *there).returncode == 0


def test_the_doctor_has_a_finding_for_every_part_of_this_machine(out: Path, tmp_path: Path) -> None:
    seen = brim(tmp_path, "doctor", "--json", "--out", str(out))
    findings = {finding["part"]: finding for finding in json.loads(seen.stdout)["findings"]}
    assert list(findings) == [
        "platform", "Python", "libpython", "tritonserver", "stub environment", "perf_analyzer", "/dev/shm", "cores",
        "memory", "disk", "ports", "GPU", "docker",
    ]  # fmt: skip
    assert all(finding["said"] for finding in findings.values())
    for part in ("tritonserver", "stub environment", "perf_analyzer"):
        assert findings[part]["state"] == "ok", findings[part]
    codes = {"missing": 3, "short": 6}
    assert seen.returncode == max([codes.get(finding["state"], 0) for finding in findings.values()])
    assert not out.exists(), "looking changes nothing"


def test_a_variant_that_a_server_of_another_out_views_is_not_rewritten(out: Path, tmp_path: Path) -> None:
    repository = tmp_path / "fresh"
    assert brim(repository, "serve", "sleep:service_ms=5", "--out", str(out)).returncode == 0
    other = brim(repository, "serve", "sleep:service_ms=7", "--out", str(tmp_path / "out2"))
    assert other.returncode == 6 and "a live server serves it" in other.stderr
    same = brim(repository, "serve", "sleep:service_ms=5", "--out", str(tmp_path / "out2"))
    assert same.returncode == 0
    assert brim(repository, "down", "--out", str(tmp_path / "out2")).returncode == 0
    assert brim(repository, "status", "--out", str(out)).returncode == 0


def test_a_corrupt_model_does_not_keep_a_good_one_from_being_served(out: Path, tmp_path: Path) -> None:
    artifact = layout.model_folder(out, "rotten") / "model.onnx"
    artifact.parent.mkdir(parents=True)
    artifact.write_bytes(b"not a protobuf at all")
    tensor = Tensor(name="X", dtype="FP32", shape=(4,))
    card = ModelCard(
        name="rotten", source="onnx/rotten", inputs=(tensor,), outputs=(tensor,), precision="fp32", weights="seeded:0",
        artifacts={"model.onnx": disk.sha256(artifact)}, recipe="",
    )  # fmt: skip
    disk.save(layout.card_file(out, "rotten"), card)
    served = brim(tmp_path / "fresh", "serve", "null", "rotten", "--json", "--out", str(out))
    assert served.returncode == 3, served.stderr
    assert served.stderr.splitlines()[-1] == "brim: exit 3 (not_ready)"
    by_name = {v["name"].partition("__")[0]: v for v in json.loads(served.stdout)["variants"]}
    assert by_name["null"]["ready"] and not by_name["rotten"]["ready"]
    assert "rotten__b4/1/model.onnx: ONNX Runtime cannot load it" in by_name["rotten"]["reason"]

    artifact.write_bytes(b"something else than the card describes")
    again = brim(tmp_path / "fresh", "serve", "null", "rotten", "--json", "--out", str(out))
    by_name = {v["name"].partition("__")[0]: v for v in json.loads(again.stdout)["variants"]}
    assert again.returncode == 3 and by_name["null"]["ready"]
    assert "not what its card describes" in next(v["reason"] for n, v in by_name.items() if "rotten" in n)


def test_a_remote_server_is_used_but_never_stopped(out: Path, repository: Path, tmp_path: Path) -> None:
    server = start(out, repository, "echo__b4", "broken__b4")
    there = ("--out", str(tmp_path / "out2"))
    served = brim(repository, "serve", "--mode", "remote", "--url", server.http, "--json", *there)
    assert served.returncode == 0, served.stderr
    document = json.loads(served.stdout)
    assert document["server"]["variants"] == ["echo__b4"] and document["server"]["pid"] is None
    broken = brim(repository, "serve", "broken__b4", "--mode", "remote", "--url", server.http, *there)
    assert broken.returncode == 3 and "the artifact is corrupt" in broken.stdout
    down = brim(repository, "down", *there)
    assert down.returncode == 0 and "forgotten" in down.stdout
    assert ledger.is_ours(server)


def test_a_server_that_is_not_on_this_machine_is_not_asked_without_leave(out: Path, tmp_path: Path) -> None:
    refused = brim(tmp_path, "serve", "--mode", "remote", "--url", "http://192.0.2.1:8000", "--out", str(out))
    assert refused.returncode == 2 and "--allow-remote 192.0.2.1" in refused.stderr


@pytest.mark.parametrize("signals", [["INT"], ["INT", "INT"], ["TERM"], ["KILL"]], ids="-".join)
def test_a_start_that_is_cut_off_leaves_nothing_running(out: Path, repository: Path, signals: list[str]) -> None:
    command = python(CHILD_START.format(out=str(out), repository=str(repository)))
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=layout.CHECKOUT)

    def stub_is_up() -> bool:
        return any("triton_python_backend_stub" in line for line in processes_of(out))

    until("the stub is loading", stub_is_up)
    for name in signals:
        child.send_signal(signal.Signals[f"SIG{name}"])
    _, errors = child.communicate(timeout=30)
    expected = {"INT": (130,), "TERM": (143,), "KILL": (-9,)}[signals[0]]
    assert child.returncode in expected, errors
    until("no process is left", lambda: not processes_of(out))
    until("its note is gone", lambda: not list((repository / ".views").glob("*.json")))
    ids = [folder.name for folder in (out / "servers").glob("brim-*")]
    until("no shared memory is left", lambda: not [p for i in ids for p in ledger.SHM.glob(f"{i}-*")])
    assert ledger.current(out) is None


def test_status_of_a_server_that_ended_says_its_last_words(out: Path, repository: Path) -> None:
    server = start(out, repository, "echo__b4")
    assert server.pid is not None and server.log is not None
    os.kill(server.pid, signal.SIGKILL)
    until("the killed server is dead", lambda: not ledger.alive(server))
    status = brim(repository, "status", "--json", "--out", str(out))
    document = json.loads(status.stdout)
    assert status.returncode == 3
    assert not document["alive"] and document["variants"] == [
        {"name": "echo__b4", "ready": False, "reason": "no server"}
    ]
    assert f"{server.id} has ended" in document["said"]
    shutil.rmtree(layout.server_folder(out, server.id))
    assert brim(repository, "down", "--out", str(out)).stdout == "nothing is running\n"
