"""The Locust sender over real sockets, in real child processes, against a server of known behaviour."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from brim import disk, layout
from brim.errors import NotReady, UsageError
from brim.records import LoadPoint, Status, Target
from judging.rows import Rows
from loadtest import payload, rows, sampling, target
from loadtest.driver import LoadResult, LoadSpec, RunningLoad
from loadtest.sender_driver import SenderDriver
from tests.fakes import QUEUE_FULL, FakeServer, Fault

pytestmark = pytest.mark.contract

FAULTS: dict[str, Status] = {
    "": Status.OK,
    "last": Status.OK,
    "queue_full": Status.REJECTED,
    "reset": Status.FAILED,
    "close": Status.FAILED,
    "garbage": Status.FAILED,
    "truncated": Status.FAILED,
    "error_200": Status.FAILED,
    "wrong_shape": Status.FAILED,
    "wrong_dtype": Status.FAILED,
    "short_output": Status.FAILED,
    "server_error": Status.FAILED,
    "redirect": Status.FAILED,
    "echo": Status.FAILED,
    "slow": Status.TIMED_OUT,
    "never": Status.TIMED_OUT,
}


def until(true: Callable[[], bool], within_s: float = 20.0) -> None:
    """Wait for something to become true; fail loudly if it does not."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def described(server: FakeServer) -> Target:
    return target.describe(server.url, server.model, allowed={}, shapes={})


def spec_of(server: FakeServer, run: Path, **changed: Any) -> LoadSpec:
    """A load of one second by four users, unless changed."""
    items = changed.pop("items", 1)
    point = LoadPoint(
        concurrency=changed.pop("concurrency", 4), senders=changed.pop("senders", 1), items_per_request=items
    )
    folder = payload.prepare(described(server), run / "payload", items_per_request=items, input_data=None, seed=1)
    usual: dict[str, Any] = {
        "url": server.url,
        "model": server.model,
        "version": "",
        "point": point,
        "payload": str(folder),
        "folder": str(run / "raw"),
        "rows": str(run / "requests"),
        "first_worker": 3,
        "seconds": 1.0,
        "timeout_s": 5.0,
        "drain_s": 2.0,
        "samples": 0,
    }
    return LoadSpec(**{**usual, **changed})


def start(spec: LoadSpec) -> RunningLoad:
    return SenderDriver().start(spec, Path(spec.folder))


def statuses(run: Path) -> Counter[int]:
    return Counter(rows.read_rows(run)["status"].tolist())


def counts(result: LoadResult) -> dict[int, int]:
    every = (result.ok, result.rejected, result.timed_out, result.failed, result.cancelled)
    return {int(status): n for status, n in zip(Status, every, strict=True) if n}


def assert_adds_up(result: LoadResult, run: Path) -> None:
    """The accounting identity, and the rows say the same."""
    assert result.sent == sum(counts(result).values())
    assert counts(result) == dict(statuses(run))


@pytest.fixture(autouse=True)
def no_orphans(tmp_path: Path) -> Iterator[None]:
    """No test leaves a sender behind."""
    yield
    assert senders(tmp_path) == set()


def senders(folder: Path) -> set[int]:
    """The processes whose command line names something in `folder`: only senders are told their spec there."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if str(folder).encode() in (entry / "cmdline").read_bytes():
                    found.add(int(entry.name))
    return found


def test_what_the_sender_counts_is_what_the_server_saw(tmp_path: Path) -> None:
    with FakeServer(service_s=0.002, slots=8) as server:
        spec = spec_of(server, tmp_path, concurrency=7, senders=2, items=2, samples=6)
        load = start(spec)
        assert [os.getsid(pid) for pid in load.pids] == list(load.pids)  # Ctrl-C in our terminal does not reach them
        result = load.finish()
    assert (result.ended, result.workers) == ("finished", (3, 4))
    assert result.sent == result.ok == len(server.log)
    assert result.items_ok == server.items == 2 * result.ok
    assert server.connections - 4 <= 7 + 4  # keep-alive: one connection a user, beside the questions about the model
    assert_adds_up(result, tmp_path)
    found = rows.read_rows(tmp_path)
    assert (found["intended_ns"] == found["sent_ns"]).all()
    assert (found["done_ns"] - found["sent_ns"]).min() >= 2_000_000
    assert result.start_ns <= found["sent_ns"].min() and found["done_ns"].max() <= result.end_ns
    assert set(found["worker"]) == {3, 4}
    assert in_flight_at_most(found) == 7
    assert disk.load(LoadResult, tmp_path / "raw" / "result.json") == result
    assert 1 <= len(result.samples) <= 6
    for number, outputs in sampling.read_outputs(described_offline(server), result.samples, tmp_path / "raw"):
        sent = payload.read_inputs(tmp_path / "payload", number)["x"]
        assert np.array_equal(outputs["y"], np.repeat(sent[:, :1], 2, axis=1))


def described_offline(server: FakeServer) -> Target:
    return Target(
        url=server.url, model=server.model, version="", inputs=tuple(server.inputs), outputs=tuple(server.outputs),
        max_batch=server.max_batch, instances=1, server_name="", server_version="",
    )  # fmt: skip


def in_flight_at_most(found: Rows) -> int:
    """The largest number of requests that were in flight at one time, an end before a beginning at the same instant."""
    at = np.concatenate([found["sent_ns"], found["done_ns"]])
    step = np.concatenate([np.ones(len(found), int), -np.ones(len(found), int)])
    return int(np.cumsum(step[np.lexsort((step, at))]).max())


def test_every_fault_of_a_server_becomes_its_status_and_nothing_is_retried(tmp_path: Path) -> None:
    order = get_args(Fault)
    assert set(order) == set(FAULTS)
    with FakeServer(fault=lambda ordinal: order[ordinal % len(order)]) as server:
        result = start(spec_of(server, tmp_path, concurrency=3, seconds=3.0, timeout_s=0.3)).finish()
    seen = server.faults
    assert set(seen) == set(order)
    expected: Counter[int] = Counter()
    for fault, number in seen.items():
        expected[int(FAULTS[fault])] += number
    assert counts(result) == dict(expected)
    assert_adds_up(result, tmp_path)
    assert sum(result.errors.values()) == result.sent - result.ok
    assert result.errors["no answer within 0.3 s"] == result.timed_out
    assert result.errors[f"HTTP 503: {QUEUE_FULL}"] == result.rejected
    assert result.errors["HTTP 302: redirects are not followed"] == seen["redirect"]
    assert result.errors["protocol: output y is INT32, not FP32"] == seen["wrong_dtype"]
    assert any("it went wrong" in text for text in result.errors)
    assert all(text.isprintable() and len(text) <= 200 for text in result.errors)
    late = rows.read_rows(tmp_path)
    late = late[late["status"] == Status.TIMED_OUT]
    waited_s = (late["done_ns"] - late["sent_ns"]) / 1e9
    assert waited_s.min() >= 0.3
    assert waited_s.max() < 1.5  # a slow answer would take 6 s to the end


def test_connections_open_while_those_before_them_are_at_work(tmp_path: Path) -> None:
    """A server hands a connection to an idle thread for good: opened together before the load, all may go to one."""
    opened: list[int] = []  # connections when each request came

    def watching(ordinal: int) -> Fault:
        opened.append(server.connections)
        return ""

    with FakeServer(fault=watching) as server:
        assert start(spec_of(server, tmp_path, concurrency=16)).finish().ended == "finished"
    joining = [b - a for a, b in itertools.pairwise(opened) if b > a]
    assert sum(joining) == 15, "the first was there before the load"
    assert max(joining) <= 7, "one at a time but where others took the sender's core"
    assert opened.index(max(opened)) > 2 * 16


def test_a_server_that_ends_each_connection_after_its_answer_costs_no_request(tmp_path: Path) -> None:
    with FakeServer(fault=lambda ordinal: "last", service_s=0.002) as server:
        result = start(spec_of(server, tmp_path, seconds=0.5)).finish()
    assert (result.ended, result.errors) == ("finished", {})
    assert result.sent == result.ok == len(server.log) > 20
    assert server.connections >= result.sent


def test_a_stop_sends_no_more_and_lets_what_is_in_flight_end(tmp_path: Path) -> None:
    with FakeServer(service_s=0.4) as server:
        load = start(spec_of(server, tmp_path, seconds=60.0))
        until(lambda: len(server.log) >= 4)
        load.stop()
        result = load.finish()
    assert len({entry.body for entry in server.log[:4]}) == 4  # users do not send the same data in step
    assert (result.ended, result.cancelled) == ("stopped", 0)
    assert result.ok == result.sent == len(server.log)
    assert_adds_up(result, tmp_path)


def test_what_is_still_in_flight_after_the_drain_is_cancelled(tmp_path: Path) -> None:
    with FakeServer(fault=lambda ordinal: "never" if ordinal >= 8 else "") as server:
        load = start(spec_of(server, tmp_path, seconds=60.0, timeout_s=30.0, drain_s=0.2))
        until(lambda: len(server.log) == 12)
        load.stop()
        result = load.finish()
    assert counts(result) == {Status.OK: 8, Status.CANCELLED: 4}
    assert_adds_up(result, tmp_path)


def test_a_killed_sender_is_a_crash_whose_rows_stay_and_its_neighbour_stops(tmp_path: Path) -> None:
    with FakeServer(service_s=0.005) as server:
        load = start(spec_of(server, tmp_path, senders=2, seconds=60.0))
        until(lambda: (tmp_path / "requests" / "3.bin").stat().st_size > 32)
        os.kill(load.pids[0], signal.SIGKILL)
        until(lambda: not load.running())
        result = load.finish()
    assert result.ended == "crashed"
    assert "sender 3 ended with signal 9" in result.reason
    assert 0 < result.ok <= len(server.log)
    assert_adds_up(result, tmp_path)
    assert len(rows.read_rows(tmp_path, [3])) > 0


def test_a_server_that_goes_away_ends_the_load_within_seconds(tmp_path: Path) -> None:
    with FakeServer(service_s=0.005) as server:
        load = start(spec_of(server, tmp_path, seconds=60.0))
        until(lambda: len(server.log) > 20)
        server.stop()
        gone = time.monotonic()
        until(lambda: not load.running())
        assert time.monotonic() - gone < 4.0
        result = load.finish()
    assert result.ended == "server_lost"
    assert "does not answer" in result.reason
    assert result.ok > 0 and result.failed > 0
    assert_adds_up(result, tmp_path)


def test_a_load_cannot_begin_where_nobody_answers(tmp_path: Path) -> None:
    with FakeServer() as server:
        spec = spec_of(server, tmp_path)
    with pytest.raises(NotReady, match=f"127.0.0.1:{server.port} does not answer"):
        start(spec)


def test_the_child_judges_the_address_itself_and_sends_nothing_outside(tmp_path: Path) -> None:
    with FakeServer() as server:
        spec = spec_of(server, tmp_path)
    file = tmp_path / "payload" / "payload.json"
    file.write_text(file.read_text().replace("127.0.0.1", "203.0.113.7"))
    with pytest.raises(UsageError, match="203.0.113.7 is 203.0.113.7, not this machine; nothing was sent"):
        start(spec)


def limited(spec: LoadSpec, most_bytes: int) -> LoadResult:
    """The end of a load whose sender can write no file larger than that."""
    load = start(spec)
    resource.prlimit(load.pids[0], resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    until(lambda: not load.running())
    return load.finish()


def test_a_full_disk_ends_the_load_and_says_so(tmp_path: Path) -> None:
    with FakeServer() as server:
        result = limited(spec_of(server, tmp_path, concurrency=8, seconds=60.0), 32 + 300 * 32)
    assert (result.ended, result.no_room) == ("crashed", True)
    assert "3.bin: no room left" in result.reason
    assert result.sent == result.ok == len(server.log) > 300  # counted, though their rows did not fit
    assert len(rows.read_rows(tmp_path)) == 300


def test_a_disk_without_room_for_the_result_itself_is_told_from_the_rows(tmp_path: Path) -> None:
    with FakeServer() as server:
        result = limited(spec_of(server, tmp_path, seconds=60.0), 32 + 2 * 32 + 5)
    assert (result.ended, result.no_room) == ("crashed", True)
    assert "no room left" in result.reason
    assert counts(result) == {Status.OK: 2}
    assert_adds_up(result, tmp_path)


def test_a_sender_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from brim import disk\n"
        "from loadtest.driver import LoadSpec\n"
        "from loadtest.sender_driver import SenderDriver\n"
        "spec = disk.load(LoadSpec, Path(sys.argv[1]))\n"
        "load = SenderDriver().start(spec, Path(spec.folder))\n"
        "print(*load.pids, flush=True)\n"
        "time.sleep(60)\n"
    )
    with FakeServer(service_s=0.005) as server:
        file = disk.save(tmp_path / "spec.json", spec_of(server, tmp_path, seconds=60.0))
        with subprocess.Popen(
            [sys.executable, "-c", program, str(file)], stdout=subprocess.PIPE, text=True, cwd=layout.CHECKOUT
        ) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            until(lambda: len(server.log) > 20)
            parent.kill()
        until(lambda: pid not in senders(tmp_path))


# ---------------------------------------------------------------------------- as a plain locustfile


def locust(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "locust", "-f", "loadtest/senders/locust_http.py", *arguments],
        cwd=layout.CHECKOUT,
        env={**os.environ, "HOME": str(home), "PYTHONPATH": str(layout.CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_plain_locust_runs_the_same_user_and_counts_the_same(tmp_path: Path) -> None:
    with FakeServer(service_s=0.002) as server:
        done = locust(
            *("--headless", "-u", "4", "-r", "4", "-t", "1s", "--stop-timeout", "5", "--json"),
            *("--host", server.url, "--brim-model", "tiny"),
            home=tmp_path,
        )
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)
    assert entry["num_requests"] == len(server.log) > 0
    assert entry["num_failures"] == 0


def test_plain_locust_sends_nothing_to_a_host_that_is_not_loopback(tmp_path: Path) -> None:
    done = locust(
        *("--headless", "-u", "1", "-t", "1s", "--host", "http://203.0.113.7:8000", "--brim-model", "m"),
        home=tmp_path,
    )
    assert done.returncode == 2
    assert "not this machine; nothing was sent" in done.stderr


@pytest.mark.parametrize("flags", [("--web-host", "0.0.0.0"), ("--master", "--headless", "--master-bind-host", "*")])
def test_plain_locust_does_not_listen_beyond_loopback(tmp_path: Path, flags: tuple[str, ...]) -> None:
    done = locust(*flags, "--host", "http://127.0.0.1:8000", "--brim-model", "m", home=tmp_path)
    assert done.returncode == 2
    assert "Brim listens on this machine only" in done.stderr


def test_the_web_ui_listens_on_loopback_without_being_told(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, "-m", "locust", "-f", "loadtest/senders/locust_http.py", "--web-port", str(port)],
        cwd=layout.CHECKOUT,
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(layout.CHECKOUT)},
        stderr=subprocess.DEVNULL,
    ) as ui:
        try:
            until(lambda: listening(port) != [])
            assert listening(port) == ["0100007F"]  # 127.0.0.1, as the kernel writes it
        finally:
            ui.terminate()


def listening(port: int) -> list[str]:
    """Addresses on which this machine listens at a port, from the kernel's own table."""
    entries = [
        line.split() for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()[1:]
    ]
    return [e[1].split(":")[0] for e in entries if e[3] == "0A" and int(e[1].split(":")[1], 16) == port]
