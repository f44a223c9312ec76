"""A cluster on one machine: Locust's master and real worker processes against a server of known behaviour.

Importing Locust takes a process more than a second, so tests share clusters, and workers start before they are needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
import zmq

import brim
from brim import codec, disk
from brim.errors import Lost, NoResource, NotReady, UsageError
from brim.records import LoadPoint, Status
from judging.rows import Rows, decode
from loadtest import payload, rows, target
from loadtest.cluster_driver import ClusterDriver, cluster, worker_command, worker_environment
from loadtest.cluster_wire import PROTOCOL, Place, WorkerPart
from loadtest.driver import LoadSpec, RunningLoad
from tests.fakes import FakeServer

pytestmark = pytest.mark.contract


def until(true: Callable[[], bool], within_s: float = 20.0) -> None:
    """Wait for something to become true; fail loudly if it does not."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


class Hosts:
    """The load hosts: worker processes, and a place for their master."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.place = Place(host="127.0.0.1", port=free.getsockname()[1])
        self.folder, self.told = folder, list[str]()
        self.workers: list[subprocess.Popen[str]] = []

    def start(self, *, within_s: float = 30.0) -> subprocess.Popen[str]:
        command = worker_command(self.place, within_s, self.folder / "worker", {})
        self.workers.append(
            subprocess.Popen(command, env=worker_environment(), stderr=subprocess.PIPE, text=True, cwd=self.folder)
        )
        return self.workers[-1]

    def one_more(self) -> subprocess.Popen[str]:
        """A worker that is none of those that were expected."""
        self.start()
        return self.workers.pop()

    def joined(self, workers: int, within_s: float = 30.0) -> contextlib.AbstractContextManager[ClusterDriver]:
        return cluster(self.place, workers, within_s, tell=self.told.append)

    def ending(self, worker: subprocess.Popen[str], within_s: float = 20.0) -> tuple[int, str]:
        """Exit code and last words of a worker."""
        said = worker.communicate(timeout=within_s)[1]
        return worker.returncode, said


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    yield from _hosts(tmp_path)


def _hosts(folder: Path) -> Iterator[Hosts]:
    """Load hosts whose workers have ended when the test has."""
    made = Hosts(folder)
    yield made
    for worker in made.workers:
        if worker.poll() is None:
            worker.kill()
        worker.communicate()


@pytest.fixture(scope="module", autouse=True)
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A worker that starts with the first test, and whose master never comes."""
    with contextlib.contextmanager(_hosts)(tmp_path_factory.mktemp("lonely")) as hosts:
        hosts.start(within_s=1.0)
        yield hosts


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Three workers and their master; a load of so many senders is sent by the first so many workers."""

    hosts: Hosts
    driver: ClusterDriver
    workers: list[subprocess.Popen[str]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for most tests: the last ones take a worker away each, from its end, and then the master."""
    with contextlib.contextmanager(_hosts)(tmp_path_factory.mktemp("shared")) as hosts:
        workers = {worker.pid: worker for worker in (hosts.start(), hosts.start(), hosts.start())}
        with hosts.joined(3) as driver:
            joined = [int(line.partition("/")[2].partition(":")[0]) for line in hosts.told if ": clock" in line]
            yield Cluster(hosts=hosts, driver=driver, workers=[workers[pid] for pid in joined])


def spec_of(server: FakeServer, run: Path, **changed: Any) -> LoadSpec:
    """A load of one second by seven users of two workers, unless changed."""
    described = target.describe(server.url, server.model, allowed={}, shapes={})
    usual: dict[str, Any] = {
        "url": server.url, "model": server.model, "version": "", "point": LoadPoint(concurrency=7, senders=2),
        "payload": str(payload.prepare(described, run / "payload", items_per_request=1, input_data=None, seed=1)),
        "folder": str(run / "raw"), "rows": str(run / "requests"), "first_worker": 3, "seconds": 1.0,
        "timeout_s": 5.0, "drain_s": 2.0, "samples": 4,
    }  # fmt: skip
    return LoadSpec(**{**usual, **changed})


def start(driver: ClusterDriver, spec: LoadSpec) -> RunningLoad:
    return driver.start(spec, Path(spec.folder))


def in_flight_at_most(found: Rows) -> int:
    steps = sorted([(int(t), 1) for t in found["sent_ns"]] + [(int(t), -1) for t in found["done_ns"]])
    return int(np.cumsum([step for _, step in steps]).max())


def test_what_two_workers_count_is_what_the_server_saw_load_after_load(shared: Cluster, tmp_path: Path) -> None:
    with FakeServer(service_s=0.002, slots=8) as server:
        first = start(shared.driver, spec_of(server, tmp_path / "one")).finish()
        assert first.sent == first.ok == len(server.log) > 50
        load = start(shared.driver, spec_of(server, tmp_path / "two", seconds=30.0, first_worker=5))
        until(lambda: len(server.log) > first.sent + 50)
        assert load.running()
        load.stop()
        second = load.finish()
        assert second.sent == second.ok == len(server.log) - first.sent
    assert (first.ended, second.ended) == ("finished", "stopped")
    assert (first.workers, second.workers) == ((3, 4), (5, 6))
    found = rows.read_rows(tmp_path / "one")
    assert len(found) == first.sent and set(found["worker"]) == {3, 4}
    assert first.start_ns <= found["sent_ns"].min() and found["done_ns"].max() <= first.end_ns
    assert in_flight_at_most(found) == 7  # on one clock: the shares of the workers add up to the whole
    assert len(first.samples) == 4 and all((tmp_path / "one" / "raw" / s.file).stat().st_size for s in first.samples)
    assert_one_clock(tmp_path / "one", shared.hosts)


def assert_one_clock(run: Path, hosts: Hosts) -> None:
    """Both sides read the same clock here, so that the offset measured must be nothing but the uncertainty."""
    shares = disk.load_lines(WorkerPart, run / "raw" / "cluster.jsonl")
    assert [share.worker for share in shares] == [3, 4]
    for share in shares:
        for clock in (share.before, share.after):
            assert clock is not None and abs(clock.offset_ns) <= clock.uncertainty_ns < 50_000_000
        theirs = decode((run / "raw" / f"requests-{share.worker}.bin").read_bytes(), "raw")[1]
        ours = decode((run / "requests" / f"{share.worker}.bin").read_bytes(), "ours")[1]
        assert set(theirs["done_ns"] - ours["done_ns"]) == {share.before.offset_ns}
        assert sum(f"worker {share.name}: clock" in line for line in hosts.told) == 1


def test_a_server_that_nobody_reaches_is_told_by_a_workers_name_and_the_next_load_goes_on(
    shared: Cluster, tmp_path: Path
) -> None:
    with FakeServer() as server:
        spec = spec_of(server, tmp_path)
    with pytest.raises(NotReady, match=r"worker .*/\d+: .*does not answer"):
        start(shared.driver, spec)
    with FakeServer() as server:
        result = start(shared.driver, spec_of(server, tmp_path / "next", seconds=0.3)).finish()
    assert (result.ended, result.ok) == ("finished", len(server.log))


def test_a_timed_out_request_is_a_row_of_the_cluster_too(shared: Cluster, tmp_path: Path) -> None:
    with FakeServer(fault=lambda ordinal: "never") as server:
        result = start(shared.driver, spec_of(server, tmp_path, seconds=1.0, timeout_s=0.4)).finish()
    found = rows.read_rows(tmp_path)
    assert result.timed_out == int((found["status"] == Status.TIMED_OUT).sum()) >= 7
    assert result.sent == len(found)


class Stranger:
    """Something else that speaks to the master's port."""

    def __init__(self, place: Place, identity: str) -> None:
        self._identity = identity
        self._socket: Any = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, identity.encode())
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(f"tcp://{place}")

    def say(self, kind: str, data: Any) -> None:
        self.throw(msgpack.dumps((kind, data, self._identity)))

    def throw(self, data: bytes) -> None:
        self._socket.send(data)

    def hear(self, within_s: float = 20.0) -> Any:
        assert self._socket.poll(int(1e3 * within_s)), "nothing was said"
        return msgpack.loads(self._socket.recv())

    def close(self) -> None:
        self._socket.close()


def hello(token: str, version: str = brim.__version__) -> dict[str, Any]:
    said = {"host": "twin", "pid": 1, "token": token, "brim": version, "protocol": PROTOCOL, "row_schema": 1}
    return {"kind": "hello", "hello": said}


def test_a_worker_of_another_version_is_refused_by_name(hosts: Hosts) -> None:
    other = Stranger(hosts.place, "other")
    try:
        other.say("client_ready", "2.47.0")
        other.say("brim", hello("a token", version="9.9.9"))
        with pytest.raises(UsageError, match=r"twin/1 runs Brim 9\.9\.9, this is"), hosts.joined(1):
            pass
        while (told := other.hear())[0] != "brim":
            pass
    finally:
        other.close()
    assert told[1]["kind"] == "refused" and "runs Brim 9.9.9" in told[1]["message"]


def test_a_surplus_worker_and_rubbish_on_the_port_do_not_disturb_a_measurement(shared: Cluster, tmp_path: Path) -> None:
    stranger, late = Stranger(shared.hosts.place, "stranger"), shared.hosts.one_more()
    for data in (b"", b"\xc1", b"GET / HTTP/1.1\r\n\r\n", msgpack.dumps([]), msgpack.dumps([[], {}, None])):
        stranger.throw(data)
    for kind, said in (
        ("locustfile", {"version": "2.47.0"}), ("locustfile", None), ("heartbeat", None), ("stats", 7),
        ("client_ready", None), ("exception", None), ("brim", None), ("brim", {"kind": "chunk"}),
        ("brim", {"kind": "hello", "hello": {"host": "\x1b[31m"}}),
    ):  # fmt: skip
        stranger.say(kind, said)
    try:
        code, words = shared.hosts.ending(late)
        assert code == 2 and "is one too many" in words
        assert len(list((shared.hosts.folder / "worker").iterdir())) == 3  # the folder of the fourth went with it
        with FakeServer(service_s=0.002) as server:
            result = start(
                shared.driver, spec_of(server, tmp_path, point=LoadPoint(concurrency=2), seconds=0.5)
            ).finish()
            assert (result.ended, result.ok) == ("finished", len(server.log))
    finally:
        stranger.close()
    assert sum(f"/{late.pid} is one too many" in line for line in shared.hosts.told) == 1
    assert not any("\x1b" in line for line in shared.hosts.told)


def test_a_full_disk_on_a_load_host_is_told_as_such_and_keeps_every_whole_row(shared: Cluster, tmp_path: Path) -> None:
    limit = 10_005  # bytes of a file: in the middle of a row
    with FakeServer() as server:
        load = start(shared.driver, spec_of(server, tmp_path, seconds=30.0, samples=0))
        with files_no_longer_than(limit, shared.workers):
            until(lambda: not load.running())
        result = load.finish()
    assert result.no_room and "no room left" in result.reason
    found = rows.read_rows(tmp_path)
    assert limit // 32 - 1 <= len(found) < result.sent
    assert (found["status"] == Status.OK).all()


@contextlib.contextmanager
def files_no_longer_than(limit: int, workers: list[subprocess.Popen[str]]) -> Iterator[None]:
    """As on a disk that is full: what is written beyond is cut off."""
    before = [resource.prlimit(worker.pid, resource.RLIMIT_FSIZE) for worker in workers]
    for worker, (_, hard) in zip(workers, before, strict=True):
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        for worker, limits in zip(workers, before, strict=True):
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, limits)


def test_a_worker_without_a_master_gives_up_within_its_bound(lonely: Hosts) -> None:
    code, said = lonely.ending(lonely.workers[0])
    assert code == 3 and f"no master answers at {lonely.place} within 1 s" in said


def test_a_worker_that_is_killed_ends_the_load_by_its_name_and_what_arrived_is_kept(
    shared: Cluster, tmp_path: Path
) -> None:
    killed = shared.workers[2]
    with FakeServer(service_s=0.002, slots=8) as server:
        three = LoadPoint(concurrency=7, senders=3)
        load = start(shared.driver, spec_of(server, tmp_path, point=three, seconds=60.0))
        until(lambda: all(len(rows.read_rows(tmp_path, [worker])) > 20 for worker in (3, 4, 5)))
        killed.kill()
        until(lambda: not load.running(), 15.0)
        result = load.finish()
        with pytest.raises(Lost, match=f"/{killed.pid} was lost"):
            start(shared.driver, spec_of(server, tmp_path / "next", point=three))
        seen = len(server.log)
    assert result.ended == "crashed" and f"/{killed.pid} was lost" in result.reason
    found = rows.read_rows(tmp_path)
    assert set(found["worker"]) == {3, 4, 5}
    assert result.sent == len(found) <= seen


def test_a_worker_that_its_host_stops_says_so_and_is_not_waited_for(shared: Cluster, tmp_path: Path) -> None:
    stopped = shared.workers[1]
    with FakeServer(service_s=0.002) as server:
        load = start(shared.driver, spec_of(server, tmp_path, seconds=60.0))
        until(lambda: len(server.log) > 20)
        stopped.send_signal(signal.SIGTERM)
        until(lambda: not load.running())
        assert f"/{stopped.pid} was lost: it was stopped on its host" in load.finish().reason  # not: it said nothing
    code, said = shared.hosts.ending(stopped)
    assert code == 143 and "brim: exit 143" in said, said


def test_workers_send_nothing_any_more_once_the_master_is_gone(shared: Cluster, tmp_path: Path) -> None:
    left = shared.workers[0]
    with FakeServer(service_s=0.002) as server:
        load = start(shared.driver, spec_of(server, tmp_path, point=LoadPoint(concurrency=3), seconds=60.0))
        until(lambda: len(server.log) > 20)
        os.kill(shared.driver.master_pid, signal.SIGKILL)
        killed_ns = time.monotonic_ns()
        result = load.finish()
        assert result.ended == "crashed" and "master ended with code -9" in result.reason
        code, said = shared.hosts.ending(left)
        assert code == 5 and "was lost" in said
        with pytest.raises(Lost, match="the cluster broke"):
            start(shared.driver, spec_of(server, tmp_path / "next", point=LoadPoint(concurrency=3)))
    assert server.log[-1].received_ns - killed_ns < 8e9
    assert not {entry.fault for entry in server.log} - {""}


def test_a_worker_that_comes_twice_is_counted_once_and_one_that_never_comes_is_told(hosts: Hosts) -> None:
    strangers = [Stranger(hosts.place, "first"), Stranger(hosts.place, "again")]
    try:
        for stranger in strangers:
            stranger.say("client_ready", "2.47.0")
            stranger.say("brim", hello("one token"))
        with pytest.raises(NotReady, match=r"1 of 2 workers came within 1 s \(twin/1\)"), hosts.joined(2, within_s=1.0):
            pass
    finally:
        for stranger in strangers:
            stranger.close()
    assert [line for line in hosts.told if "refused" in line] == ["refused: worker twin/1 came twice; it counts once"]


def test_a_port_that_is_taken_is_told(hosts: Hosts) -> None:
    with (
        socket.create_server(("127.0.0.1", hosts.place.port)),
        pytest.raises(NoResource, match="cannot listen there"),
        hosts.joined(1),
    ):
        pass


#: A worker whose messages make the master stumble over a bug of its own.
STUMBLE = """
import json, sys
from loadtest.senders.cluster_load import MasterLoad, Member
from brim import codec
from loadtest.cluster_wire import Hello
from loadtest.driver import LoadSpec

class Link:
    other = "worker lab/1"
    def say(self, kind): print(kind)
    def hear(self, *kinds, within_s): return 1 // 0

hello = Hello(host="lab", pid=1, token="t", brim="", protocol=1, row_schema=1)
load = MasterLoad(codec.from_json(LoadSpec, sys.argv[1], where=""), [Member(client_id="", hello=hello, link=Link())])
load._parts[0].close = lambda: None
load.gather()
print(json.dumps(load.failures))
"""


def test_a_bug_in_the_master_is_that_workers_failure_and_ends_the_load(tmp_path: Path) -> None:
    with FakeServer() as server:
        told = codec.to_json(spec_of(server, tmp_path, point=LoadPoint(concurrency=1)))
    (tmp_path / "raw").mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-c", STUMBLE, told], env=worker_environment(), stdout=subprocess.PIPE, text=True,
        check=True,
    )  # fmt: skip
    stop, failures = done.stdout.splitlines()
    assert stop == "stop"
    [(worker, why)] = json.loads(failures).items()
    assert worker == "3" and why.startswith("worker lab/1: bug: ZeroDivisionError")
