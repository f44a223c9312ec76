"""Several load hosts on one machine: network namespaces with addresses of their own, and clocks of their own.

    host (server and master, 10.203.113.1 and .5)  --veth--  lab2 (worker, .2),  lab3 (worker, .6; its clock is ahead)

Needs root, iproute2, network and time namespaces; skipped with its reason where one of them is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brim import disk, layout
from brim.records import TargetLimit
from judging.rows import decode
from loadtest.cluster_driver import worker_command, worker_environment
from loadtest.cluster_wire import Place, WorkerPart
from loadtest.driver import LoadResult
from loadtest.rows import read_rows

pytestmark = pytest.mark.contract

PORT = 5557
SERVER, SERVER_ASIDE = "10.203.113.1", "10.203.113.5"
WORKERS = {"lab2": "10.203.113.2", "lab3": "10.203.113.6"}
AHEAD_S = 12345  # lab3's monotonic clock

#: The measuring host: a server of known behaviour on the veth addresses, and a cluster of two that loads it once.
MEASURE = """
import asyncio, json, sys
from pathlib import Path
from brim import disk
from brim.records import LoadPoint, TargetLimit
from loadtest import payload, target
from loadtest.cluster_driver import cluster
from loadtest.cluster_wire import Place
from loadtest.driver import LoadSpec
from tests.fakes import FakeServer

run, address = Path(sys.argv[1]), sys.argv[2]

class Reachable(FakeServer):
    @property
    def url(self):
        return f"http://{address}:{self.port}"

# FakeServer listens on loopback; here it must be reached over the veth pair
start_server = asyncio.start_server
asyncio.start_server = lambda serve, host, port, **options: start_server(serve, "0.0.0.0", port, **options)
allowed = {address: TargetLimit(host=address)}
with Reachable(service_s=0.002, slots=8) as server:
    pool = payload.prepare(target.describe(server.url, server.model, allowed=allowed, shapes={}),
                           run / "payload", items_per_request=1, input_data=None, seed=1)
    spec = LoadSpec(url=server.url, model=server.model, version="", point=LoadPoint(concurrency=5, senders=2),
                    payload=str(pool), folder=str(run / "raw"), rows=str(run / "requests"), first_worker=0,
                    seconds=1.0, timeout_s=5.0, drain_s=2.0, samples=0, allowed=allowed)
    with cluster(Place(host=address), 2, 30.0, tell=lambda line: print(line, file=sys.stderr)) as driver:
        result = driver.start(spec, run / "raw").finish()
    first, last = server.log[0].received_ns, server.log[-1].answered_ns
print(json.dumps({"served": len(server.log), "first_ns": first, "last_ns": last}))
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def namespaces() -> Iterator[dict[str, str]]:
    """What the test calls host, lab2 and lab3 -> the namespace's real name; they are gone afterwards."""
    for tool in ("ip", "unshare"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed here")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    names = {name: f"brim-{name}-{os.getpid()}" for name in ("host", *WORKERS)}
    try:
        _make(names)
        yield names
    finally:
        for name in names.values():  # the veth pairs go with them
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _make(names: dict[str, str]) -> None:
    try:
        for name in names.values():
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for number, ((lab, address), ours) in enumerate(zip(WORKERS.items(), (SERVER, SERVER_ASIDE), strict=True)):
            here, there = f"brim{os.getpid() % 10**6}h{number}", f"brim{os.getpid() % 10**6}w{number}"
            ip("link", "add", here, "netns", names["host"], "type", "veth", "peer", "name", there, "netns", names[lab])
            for name, device, its in ((names["host"], here, ours), (names[lab], there, address)):
                ip("-n", name, "addr", "add", f"{its}/30", "dev", device)
                ip("-n", name, "link", "set", device, "up")
        ip("-n", names["lab3"], "route", "add", f"{SERVER}/32", "via", SERVER_ASIDE)
        ip("-n", names["lab2"], "route", "add", f"{SERVER_ASIDE}/32", "via", SERVER)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")


@pytest.fixture(scope="module")
def clock_ahead() -> list[str]:
    """What runs a command with a monotonic clock that is AHEAD_S ahead."""
    command = ["unshare", "--time", "--monotonic", str(AHEAD_S), "--"]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no time namespaces here: {tried.stderr.strip()}")
    return command


@contextlib.contextmanager
def started(*commands: list[str], **options: Any) -> Iterator[list[subprocess.Popen[str]]]:
    """Child processes in sessions of their own, which are gone afterwards with whatever they started."""
    children = [
        subprocess.Popen(c, text=True, start_new_session=True, env=worker_environment(), **options) for c in commands
    ]
    try:
        yield children
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()


def worker(folder: Path, *, allowed: bool) -> list[str]:
    limits = {SERVER: TargetLimit(host=SERVER)} if allowed else {}
    return worker_command(Place(host=SERVER, port=PORT), 30.0, folder, limits)


def measuring(namespace: str, run: Path) -> list[str]:
    return ["ip", "netns", "exec", namespace, sys.executable, "-c", MEASURE, str(run), SERVER]


def test_rows_of_two_hosts_with_two_clocks_are_merged_into_one_account(
    namespaces: dict[str, str], clock_ahead: list[str], tmp_path: Path
) -> None:
    inside = {name: ["ip", "netns", "exec", namespaces[name]] for name in namespaces}
    loads = [
        [*inside["lab2"], *worker(tmp_path / "lab2", allowed=True)],
        [*inside["lab3"], *clock_ahead, *worker(tmp_path / "lab3", allowed=True)],
    ]
    with (
        started(*loads, stderr=subprocess.PIPE) as workers,
        started(measuring(namespaces["host"], tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                cwd=layout.CHECKOUT) as (host,),
    ):  # fmt: skip
        out, said = host.communicate(timeout=60)
        assert host.returncode == 0, said
        assert [child.wait(20) for child in workers] == [0, 0]
    served = json.loads(out)
    result, found = disk.load(LoadResult, tmp_path / "raw" / "result.json"), read_rows(tmp_path)
    assert (result.ended, set(found["worker"])) == ("finished", {0, 1})
    assert result.ok == len(found) == served["served"] > 50
    shares = disk.load_lines(WorkerPart, tmp_path / "raw" / "cluster.jsonl")
    ahead_s = sorted(round(share.before.offset_ns / 1e9, 2) for share in shares)
    assert ahead_s == [0, AHEAD_S]
    for share in shares:  # the truth is known: the namespace's offset is whole seconds, exactly
        true_ns = AHEAD_S * 10**9 if share.before.offset_ns > 10**9 else 0
        assert abs(share.before.offset_ns - true_ns) <= share.before.uncertainty_ns
        ours = decode((tmp_path / "requests" / f"{share.worker}.bin").read_bytes(), "ours")[1]
        slack_ns = share.before.uncertainty_ns
        assert served["first_ns"] - 10**9 < ours["sent_ns"].min() <= ours["done_ns"].max() < served["last_ns"] + 10**9
        assert result.start_ns - slack_ns <= ours["sent_ns"].min()
    assert "whoever reaches that port can join" in said
    assert len(re.findall(r": its clock moved [+-]\d+\.\d{3} ms", said)) == 2
    assert [list((tmp_path / lab).iterdir()) for lab in WORKERS] == [[], []]  # nothing stays on the load hosts
    assert len(re.findall(r": clock [+-]\d+\.\d{3} ms \(±\d+\.\d{3} ms\)", said)) == 2


def test_a_worker_judges_the_target_itself_and_its_refusal_ends_the_load_by_its_name(
    namespaces: dict[str, str], tmp_path: Path
) -> None:
    loads = [
        ["ip", "netns", "exec", namespaces[lab], *worker(tmp_path / lab, allowed=lab == "lab2")] for lab in WORKERS
    ]
    with (
        started(*loads, stderr=subprocess.PIPE) as workers,
        started(measuring(namespaces["host"], tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                cwd=layout.CHECKOUT) as (host,),
    ):  # fmt: skip
        _, said = host.communicate(timeout=60)
        ended = time.monotonic()
        assert [child.wait(20) for child in workers] == [0, 0]
        assert time.monotonic() - ended < 10
    assert f"UsageError: worker {os.uname().nodename}/" in said and f"--allow-remote {SERVER}" in said
    assert not (tmp_path / "requests").exists()  # nothing was sent
