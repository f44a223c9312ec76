"""What is decided about servers: command lines, who is ours, what is ready and why not, what makes way for what."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from brim import disk, layout
from brim.errors import NoResource, NotReady, UsageError
from brim.records import KnownServer, Server, ServingConfig, Tensor, Variant
from brim.say import Say
from serve import choice, container, embedded, ledger, prerequisites, readiness
from serve.ports import PickedPorts, Ports, pick
from serve.prerequisites import StubFacts, ToolFacts
from serve.readiness import VariantState

PORTS = PickedPorts(http=18000, grpc=18001, metrics=18002)
ID = "brim-20261122t143812z-1a2b3c"
CHECKOUT = Path(__file__).resolve().parents[2]


def server(**changes: object) -> Server:
    me = psutil.Process()
    record = Server(
        id=ID, mode="embedded", http="http://127.0.0.1:18000", grpc="grpc://127.0.0.1:18001",
        metrics="http://127.0.0.1:18002/metrics", pid=me.pid, process_started_s=me.create_time(), version="2.51.0",
        variants=("a__b4", "b__b4"), repository=None, log=None,
    )  # fmt: skip
    return replace(record, **changes)  # type: ignore[arg-type]  # a test names the fields


# ---------------------------------------------------------------------------- command lines


def test_the_embedded_server_listens_on_loopback_only_and_cannot_be_changed_from_outside() -> None:
    command = embedded.argv(Path("/t/tritonserver"), Path("/o/repository"), Path("/t/backends"), PORTS, ID)
    assert command == [
        "/t/tritonserver",
        f"--id={ID}",
        "--model-repository=/o/repository",
        "--backend-directory=/t/backends",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        "--http-port=18000",
        "--grpc-port=18001",
        "--metrics-port=18002",
        "--model-control-mode=none",
        "--exit-on-error=false",
        "--disable-auto-complete-config",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        "--exit-timeout-secs=5",
        f"--backend-config=python,shm-region-prefix-name={ID}-",
        "--backend-config=python,stub-timeout-seconds=120",
    ]


def docker_command(*, gpus: bool) -> list[str]:
    return container.argv(
        ["a__b4", "b__b4"], "image:tag", PORTS, gpus, server_id=ID, repository=Path("/repo"), user="1000:1000"
    )


def test_docker_run_publishes_on_loopback_only_and_mounts_the_repository_read_only() -> None:
    assert docker_command(gpus=True) == [
        "docker", "run", "--detach", f"--name={ID}", "--user=1000:1000", "--gpus=all",
        "--publish=127.0.0.1:18000:8000", "--publish=127.0.0.1:18001:8001", "--publish=127.0.0.1:18002:8002",
        "--volume=/repo:/models:ro", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL",
        "--security-opt=no-new-privileges", "--shm-size=1g", "--ulimit=memlock=-1", "--ulimit=stack=67108864",
        "image:tag", "tritonserver", f"--id={ID}", "--model-repository=/models", "--model-control-mode=explicit",
        "--exit-on-error=false", "--disable-auto-complete-config", "--load-model=a__b4", "--load-model=b__b4",
    ]  # fmt: skip


def test_without_a_gpu_docker_is_asked_for_none() -> None:
    with_gpu, without = docker_command(gpus=True), docker_command(gpus=False)
    assert [word for word in with_gpu if word not in without] == ["--gpus=all"]


def test_compose_serves_with_the_same_flags_as_docker_run() -> None:
    text = (CHECKOUT / "docker" / "compose.yaml").read_text("utf-8")
    own = {"--id", "--load-model"}  # their values are the service's
    expected = {f for f in container.server_argv(["x"], "y")[1:] if f.partition("=")[0] not in own}
    said = set(re.findall(r"^      - (--\S+)", text, re.MULTILINE))
    assert {f for f in said if f.partition("=")[0] not in own} == expected
    keys = {
        "--user": "user:", "--publish": "- 127.0.0.1:", "--volume": ":/models:ro", "--read-only": "read_only: true",
        "--tmpfs": "tmpfs:\n      - /tmp", "--cap-drop": "cap_drop:\n      - ALL",
        "--security-opt": "- no-new-privileges", "--shm-size": "shm_size: 1g", 
        "--ulimit": "memlock: -1\n      stack: 67108864",
    }  # fmt: skip
    words = docker_command(gpus=False)
    flags = {word.partition("=")[0] for word in words[2 : words.index("image:tag")]} - {"--detach", "--name"}
    assert flags == set(keys)
    assert [flag for flag, line in keys.items() if line not in text] == []
    assert text.count("- 127.0.0.1:") == 3 and container.IMAGE in text


# ---------------------------------------------------------------------------- ports


def test_free_ports_are_three_different_ones() -> None:
    picked = pick(Ports())
    assert len({picked.http, picked.grpc, picked.metrics}) == 3


def test_a_port_that_was_asked_for_and_is_taken_is_refused_with_the_pid_that_holds_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(NoResource, match=rf"port {port} is taken by pid {os.getpid()} \(.*--http-port"):
            pick(Ports(http=port))
    assert pick(Ports(http=port)).http == port


def test_a_preferred_port_that_is_taken_gives_way_to_a_free_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        assert pick(Ports(), replace(PORTS, http=port)).http != port


def test_one_port_for_two_purposes_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="port 18000 is given twice"):
        pick(Ports(http=18000, metrics=18000))


# ---------------------------------------------------------------------------- ready or not


def test_the_index_says_which_variant_is_not_ready_and_its_errors_last_line_why() -> None:
    index = [
        {"name": "good__b4", "version": "1", "state": "READY"},
        {"name": "bad__b4", "version": "1", "state": "UNAVAILABLE",
         "reason": "Internal: ValueError: the artifact is corrupt:\nno protobuf\n\nAt:\n  /r.py(2): initialize\n"},
        {"name": "refused__b4"},
    ]  # fmt: skip
    log = ["E1122 14:44:59.044136 20104 model_repository_manager.cc:1460] "
           "\"Poll failed for model directory 'refused__b4': preferred size must be <= max batch size\""]  # fmt: skip
    assert readiness.states(index, ["good__b4", "bad__b4", "refused__b4", "absent__b4"], log) == (
        VariantState(name="good__b4", ready=True),
        VariantState(name="bad__b4", ready=False, reason="ValueError: the artifact is corrupt: no protobuf"),
        VariantState(
            name="refused__b4",
            ready=False,
            reason="Poll failed for model directory 'refused__b4': preferred size must be <= max batch size",
        ),
        VariantState(name="absent__b4", ready=False, reason="the server does not know it"),
    )


def test_a_variant_is_not_blamed_for_a_longer_name_that_holds_its_own() -> None:
    assert readiness.said_of("net__b4", ["E1122 1:2:3.4 5 a.cc:1] \"failed to load 'big-net__b4'\""]) == ""


def test_a_reason_is_one_line_whatever_its_length() -> None:
    line = readiness.one_line("Internal: " + "word\n" * 500)
    assert "\n" not in line and len(line) == 300 and line.endswith("…")


def test_the_last_words_are_errors_of_this_server_and_not_what_every_machine_without_a_gpu_logs() -> None:
    log = [
        'E1122 14:38:43.905178 15036 server.cc:241] "CudaDriverHelper has not been initialized."',
        "| Option | Value |",
        'I1122 14:38:43.906932 15036 model_lifecycle.cc:472] "loading: null__ok:1"',
        'E1122 14:38:52.796916 15432 main.cc:257] "failed to start HTTP service: Unavailable - Socket in use "',
    ]
    assert readiness.last_words(log) == "failed to start HTTP service: Unavailable - Socket in use"
    assert readiness.port_was_taken(log)
    assert not readiness.port_was_taken(log[:3])
    assert readiness.last_words([]) == "its log is empty"


def test_a_server_that_ends_while_it_starts_is_not_waited_for() -> None:
    with pytest.raises(NotReady, match=r"ended while it started \(exit code 1\): no such flag"):
        readiness.wait(
            url="http://127.0.0.1:9", server_id=ID, variants=["a__b4"], log=lambda: ["no such flag"],
            ended=lambda: "exit code 1", wait_s=60, progress=lambda text: None,
        )  # fmt: skip


def test_at_the_deadline_the_variants_that_still_load_are_named() -> None:
    said: list[str] = []
    with pytest.raises(NotReady, match=r"not ready after 0 s: slow__b4 still loading"):
        readiness.wait(
            url="http://127.0.0.1:9", server_id=ID, variants=["fast__b4", "slow__b4"],
            log=lambda: ["I1 1:2:3.4 5 a.cc:1] \"successfully loaded 'fast__b4'\""],
            ended=lambda: None, wait_s=0, progress=said.append,
        )  # fmt: skip
    assert said == ["  fast__b4 loaded"]


# ---------------------------------------------------------------------------- whose process


@pytest.mark.parametrize(
    ("recorded", "found", "same"),
    [(100.0, 100.0, True), (100.0, 101.0, True), (100.0, 160.0, False), (100.0, None, False), (None, 100.0, False)],
)
def test_a_pid_names_our_process_only_with_its_start_time(
    recorded: float | None, found: float | None, same: bool
) -> None:
    assert ledger.same_process(recorded, found) is same


def test_a_pid_that_was_used_again_is_neither_alive_nor_stopped(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        record = server(pid=stranger.pid, process_started_s=psutil.Process(stranger.pid).create_time() - 1000)
        assert not ledger.alive(record)
        ledger.stop(record, tmp_path)
        assert stranger.poll() is None
        assert stranger.stdin is not None
        stranger.stdin.close()


def test_stop_ends_the_process_that_was_recorded_and_drops_the_link(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record = server(
        pid=process.pid, process_started_s=psutil.Process(process.pid).create_time(), repository=str(tmp_path / "repo")
    )
    ledger.note(record, tmp_path)
    ledger.make_current(record, tmp_path)
    assert ledger.current(tmp_path) == record
    assert ledger.viewed(tmp_path / "repo") == {"a__b4", "b__b4"}
    assert ledger.viewed(tmp_path / "repo", besides=record.id) == frozenset()
    ledger.stop(record, tmp_path)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()
    assert not ledger.alive(record)
    assert ledger.current(tmp_path) is None
    assert ledger.viewed(tmp_path / "repo") == frozenset()
    assert (layout.server_folder(tmp_path, record.id) / "server.json").exists()


def test_what_a_dead_server_left_is_swept_and_nothing_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shm, repo = tmp_path / "shm", tmp_path / "repo"
    shm.mkdir()
    monkeypatch.setattr(ledger, "SHM", shm)
    for name in (f"{ID}-1111", "brim-20261122t143812z-ffffff-2222", "triton_python_backend_shm_region_3333"):
        (shm / name).touch()
    dead = server(process_started_s=1.0, repository=str(repo))
    ledger.note(dead, tmp_path)
    ledger.make_current(dead, tmp_path)
    assert ledger.sweep(tmp_path, repo) == [ID]
    left = ["brim-20261122t143812z-ffffff-2222", "triton_python_backend_shm_region_3333"]
    assert sorted(path.name for path in shm.iterdir()) == left
    assert ledger.current(tmp_path) is None
    assert ledger.sweep(tmp_path, repo) == []


def test_an_id_that_brim_did_not_make_is_never_a_prefix_of_files_to_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "SHM", tmp_path)
    (tmp_path / "a-file").touch()
    for wild in ("a", "", "*", "brim-*"):
        ledger.end_leftovers(wild)
    assert (tmp_path / "a-file").exists()


def test_no_server_and_a_dead_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="`make serve` starts one"):
        ledger.usable(tmp_path)
    log = tmp_path / "log"
    log.write_text('E1122 14:38:52.796916 15432 main.cc:257] "out of memory"\n')
    ledger.make_current(disk_ready(server(process_started_s=1.0, log=str(log)), tmp_path), tmp_path)
    with pytest.raises(NotReady, match=rf"{ID} has ended \(out of memory\)"):
        ledger.usable(tmp_path)


def disk_ready(record: Server, out: Path) -> Server:
    disk.make_folder(layout.server_folder(out, record.id))
    return record


def test_a_remote_server_is_nobodys_and_is_not_even_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_ask(*_: object) -> str:
        raise AssertionError("a host that is only allowed for this command must not be asked without leave")

    monkeypatch.setattr(ledger, "answered_by", must_not_ask)
    assert not ledger.is_ours(server(mode="remote", http="http://gpu.example:8000", pid=None))


def test_a_server_is_ours_only_if_it_answers_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, ours in ((ID, True), ("triton", False), (None, False)):
        monkeypatch.setattr(ledger, "answered_by", lambda _, name=name: name)
        assert ledger.is_ours(server()) is ours


@pytest.mark.parametrize(
    ("name", "said"),
    [(None, "does not answer"), ("triton", "'triton', a stranger"), ("brim-other", "'brim-other', a stranger")],
)
def test_a_stranger_on_the_port_is_refused_by_name(name: str | None, said: str) -> None:
    with pytest.raises(NotReady, match=said):
        ledger.refuse_stranger(server(), name)


# ---------------------------------------------------------------------------- what makes way

READY = (VariantState(name="a__b4", ready=True), VariantState(name="b__b4", ready=True))


def why_new(**changes: object) -> str | None:
    asked: dict[str, object] = {
        "mode": "embedded", "wanted": {"b__b4", "a__b4"}, "changed": set(), "ports": Ports(), "states": READY,
        "replace": False,
    }  # fmt: skip
    return choice.why_new(server(), **{**asked, **changes})  # type: ignore[arg-type]  # a test names the arguments


def test_the_same_variants_on_a_healthy_server_are_served_already() -> None:
    assert why_new() is None
    assert why_new(ports=Ports(http=18000)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"replace": True}, "--replace"),
        ({"mode": "docker"}, "it is embedded, docker was asked for"),
        ({"states": None}, "it does not answer by its own name"),
        ({"changed": {"a__b4"}}, "a__b4 changed"),
        ({"wanted": {"a__b4"}}, "it serves a__b4, b__b4"),
        ({"states": (READY[0], VariantState(name="b__b4", ready=False))}, "b__b4 is not ready there"),
        ({"ports": Ports(grpc=1234)}, "port 1234 was asked for"),
    ],
)
def test_anything_else_makes_way_and_says_why(changes: dict[str, object], reason: str) -> None:
    assert why_new(**changes) == reason


def test_a_port_that_the_server_which_makes_way_holds_itself_is_as_good_as_free() -> None:
    assert choice.besides(Ports(http=18000, grpc=7), server()) == Ports(grpc=7)
    assert choice.besides(Ports(http=18000), None) == Ports(http=18000)


def test_shared_memory_is_needed_for_two_full_batches_an_instance() -> None:
    tensor = Tensor(name="X", dtype="FP32", shape=(3, 224, 224))
    out = Tensor(name="Y", dtype="INT64", shape=(-1, 10))
    model = KnownServer(kind="null", inputs=(tensor,), outputs=(out,), digest="")
    config = ServingConfig(name="c", engine="known", backend="python", max_batch=8, instances=3)
    item = 3 * 224 * 224 * 4 + 10 * 8
    assert choice.shared_memory_bytes([Variant(model=model, config=config)]) == 3 * (2**20 + 2 * 8 * item)
    native = replace(config, backend="onnxruntime")
    assert choice.shared_memory_bytes([Variant(model=model, config=native)]) == 0


# ---------------------------------------------------------------------------- what must be there before

TOOLS = ToolFacts(own_python="3.12", tritonserver=True, stub=True, stub_built_for="3.12")
STUB = StubFacts(python="3.12.4", numpy="1.26.4", libpython_folder="/lib", runtime="onnxruntime 1.22.0")


def test_a_fit_environment_is_not_complained_about() -> None:
    assert prerequisites.missing_tools(TOOLS) is None
    assert prerequisites.unfit_stub(STUB, TOOLS) is None


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (replace(TOOLS, tritonserver=False), r"tritonserver is not there; `make serve`"),
        (replace(TOOLS, stub=False), r"python3 is not there; `make serve`"),
        (replace(TOOLS, own_python="3.13", stub=False), r"needs Python 3.11 or 3.12.*made with 3.13.*PYTHON="),
    ],
)
def test_a_missing_tool_is_named_with_what_sets_it_up(facts: ToolFacts, said: str) -> None:
    line = prerequisites.missing_tools(facts)
    assert line is not None and re.search(said, line) and "\n" not in line


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (replace(STUB, numpy="2.1.0"), "numpy 2.1.0, under which this Triton silently serves zeros"),
        (replace(STUB, numpy=None), "has no numpy"),
        (replace(STUB, libpython_folder=None), "install libpython3.12"),
        (replace(STUB, python="3.11.9"), "set up for Python 3.12 and .tools/stub is Python 3.11"),
    ],
)
def test_an_environment_that_would_serve_wrong_numbers_is_refused(facts: StubFacts, said: str) -> None:
    line = prerequisites.unfit_stub(facts, TOOLS)
    assert line is not None and said in line and "\n" not in line


def test_the_servers_environment_puts_the_stubs_python_before_any_other_on_path() -> None:
    inherited = {"PATH": "/other/3.13/bin:/usr/bin", "PYTHONHOME": "/other", "LD_LIBRARY_PATH": "/mine", "LANG": "C"}
    found = prerequisites.environment(STUB, Path("/o/servers/x"), inherited)
    assert found["PATH"].split(":") == [str(layout.stub_python().parent), "/other/3.13/bin", "/usr/bin"]
    assert found["LD_LIBRARY_PATH"].split(":") == [str(layout.triton_libraries()), "/lib", "/mine"]
    assert found["PYTHONPATH"] == str(layout.CHECKOUT)
    assert found["BRIM_SERVER_FOLDER"] == "/o/servers/x"
    assert found["LANG"] == "C" and "PYTHONHOME" not in found


def test_the_python_that_a_program_is_linked_for_is_read_from_the_program(tmp_path: Path) -> None:
    program = tmp_path / "stub"
    program.write_bytes(b"\x7fELF...\0libpython3.12.so.1.0\0libc.so.6\0")
    assert prerequisites.linked_python(program) == "3.12"
    assert prerequisites.linked_python(tmp_path / "absent") is None


def test_a_stub_python_that_does_not_run_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "python3"
    broken.write_text("#!/bin/sh\necho shim: python3.12: command not found >&2\nexit 127\n")
    broken.chmod(0o755)
    with pytest.raises(NotReady, match="does not run .*command not found"):
        prerequisites.probe_stub(broken)
    with pytest.raises(NotReady, match="does not run"):
        prerequisites.probe_stub(tmp_path / "absent")


def test_an_environment_with_numpy_2_is_refused_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = '{"python": "3.12.4", "numpy": "2.4.6", "libpython_folder": "", "runtime": "onnxruntime 1.32.0"}'
    for name, text in (("tritonserver", "exit 70"), ("python3", f"echo '{told}'")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(layout, "tritonserver", lambda: tmp_path / "tritonserver")
    monkeypatch.setattr(layout, "stub_python", lambda: tmp_path / "python3")
    with pytest.raises(NotReady, match="numpy 2.4.6, under which this Triton silently serves zeros"):
        embedded.start(["a__b4"], out=tmp_path / "out", repository=tmp_path, say=Say(quiet=True))
    assert not (tmp_path / "out").exists()
