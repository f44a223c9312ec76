"""Inputs in shared memory and in smaller dtypes with the real tritonserver: what it answers, and what stays behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from brim import guard, layout
from brim.errors import Interrupted, NotReady
from brim.kserve import KServe
from brim.records import Access, LoadPoint, Protocol, Sender, Server, ServingConfig, Target, Transport, Variant
from brim.say import Say
from loadtest import grpc_requests, payload, prepared, regions, request_bytes, rows, sampling, target
from loadtest.control import control
from loadtest.driver import LoadResult, LoadSpec
from loadtest.owned_files import SHM
from loadtest.sender_driver import SenderDriver
from loadtest.senders import answers
from serve import embedded, known, variants

pytestmark = pytest.mark.contract

Array = np.ndarray[Any, Any]

PIXELS = 32
MAX_BATCH = 4
SENDERS: dict[Protocol, Sender] = {"http": "locust_http", "grpc": "grpc_aio"}


def image(bits: int) -> Variant:
    config = ServingConfig(name=f"c{bits}", engine="known", backend="python", max_batch=MAX_BATCH)
    return Variant(model=known.known_server("image", {"pixels": PIXELS, "bits": bits}), config=config)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real server of the same images in three dtypes."""
    out = tmp_path_factory.mktemp("out")
    images = [image(bits) for bits in known.IMAGE_DTYPES]
    for each in images:
        variants.build(each, out=out, repository=out / "repository", viewed=())
    started = embedded.start([v.name for v in images], out=out, repository=out / "repository", say=Say(quiet=True))
    yield started
    assert started.pid is not None
    process = psutil.Process(started.pid)
    process.terminate()
    process.wait(20)


@pytest.fixture(autouse=True)
def nothing_left(server: Server) -> Iterator[None]:
    """Whatever a test did, neither the machine nor the server keeps a region of it."""
    yield
    assert list(SHM.glob(f"{regions.PREFIX}*test*")) == []
    assert KServe(server.http).shared_memory("system") == []


def described(server: Server, bits: int, protocol: Protocol = "http") -> Target:
    found = target.describe(server.http, image(bits).name, allowed={}, variant=image(bits), server=server, shapes={})
    return found if protocol == "http" else replace(found, url=str(server.grpc))


def asked_once(folder: Path) -> list[Array]:
    """The server's answer to every request of the pool, one after the other and without any sender of Brim's."""
    made = prepared.load(folder)
    endpoint = guard.parse_url(made.url)
    requests = [(folder / member.request).read_bytes() for member in made.members]
    if made.protocol == "http":
        with socket.create_connection((endpoint.host, endpoint.port), timeout=10) as sock:
            return [http_answer(sock, request) for request in requests]
    with grpc.insecure_channel(endpoint.netloc) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        return [grpc_requests.read_answer(infer(request, timeout=10))["OUTPUT"] for request in requests]


def http_answer(sock: socket.socket, request: bytes) -> Array:
    sock.sendall(request)
    data = b""
    while (head := answers.read_head(data)) is None or len(data) < head.total:
        data += sock.recv(2**16)
    assert head.status == 200, data
    return request_bytes.read_tensors(data[head.head_bytes :], head.json_bytes or 0, "outputs")["OUTPUT"]


def sums(folder: Path, member: int, dtype: str) -> list[list[float]]:
    """What the known server `image` must answer, from the inputs that were kept."""
    images = payload.read_inputs(folder, member)["INPUT"]
    assert images.dtype == request_bytes.NUMPY[dtype]
    return [[sum(float(channel[0, 0]) for channel in image)] for image in images]


def loaded(found: Target, folder: Path, run: Path, *, items: int = 1, samples: int = 0) -> LoadResult:
    """Half a second of load with the payload in `folder`."""
    made = prepared.load(folder)
    spec = LoadSpec(
        url=found.url, model=found.model, version="", payload=str(folder), folder=str(run / "raw"),
        rows=str(run / "requests"), first_worker=0, seconds=0.5, timeout_s=10.0, drain_s=5.0, samples=samples,
        point=LoadPoint(
            concurrency=4, items_per_request=items, protocol=made.protocol, sender=SENDERS[made.protocol],
            transport="shared_memory" if made.regions else "wire",
        ),
    )  # fmt: skip
    return SenderDriver().start(spec, run / "raw").finish()


@pytest.mark.parametrize(("bits", "items"), [(32, 1), (16, 3), (8, MAX_BATCH)])
@pytest.mark.parametrize("transport", ["wire", "shared_memory"])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_server_sums_the_very_images_that_were_prepared(
    server: Server, tmp_path: Path, protocol: Protocol, transport: Transport, bits: int, items: int
) -> None:
    found = described(server, bits, protocol)
    with regions.opened(transport, KServe(server.http), "test", {}) as memory:
        folder = payload.prepare(
            found, tmp_path, items_per_request=items, input_data=None, seed=1, protocol=protocol, memory=memory
        )
        answered = asked_once(folder)
    image_bytes = items * 3 * PIXELS * PIXELS * bits // 8
    assert (prepared.load(folder).request_bytes > image_bytes) == (transport == "wire")
    for member, answer in enumerate(answered):
        np.testing.assert_allclose(answer, sums(folder, member, known.IMAGE_DTYPES[bits]), rtol=1e-6)
    assert len({answer.tobytes() for answer in answered}) > 1  # or a wrong place in the region would not show


def test_a_compressed_request_is_shorter_and_means_the_same(server: Server, tmp_path: Path) -> None:
    found = described(server, 8)
    np.save(tmp_path / "INPUT.npy", np.tile(np.arange(PIXELS, dtype=np.uint8), (2, 3, PIXELS, 1)))
    folder = payload.prepare(
        found, tmp_path / "payload", items_per_request=2, input_data=str(tmp_path), seed=1, compression="gzip"
    )
    assert prepared.load(folder).request_bytes < 3 * PIXELS * PIXELS
    [answer] = asked_once(folder)
    np.testing.assert_allclose(answer, sums(folder, 0, "UINT8"))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_sender_counts_what_the_server_counts_and_keeps_the_right_answers(
    server: Server, tmp_path: Path, protocol: Protocol
) -> None:
    found = described(server, 16, protocol)
    ask = KServe(server.http)
    before = ask.statistics(found.model)["inference_count"]
    with regions.opened("shared_memory", control(found.url, {}, Access()), "test", {}) as memory:
        folder = payload.prepare(
            found, tmp_path / "p", items_per_request=3, input_data=None, seed=1, protocol=protocol, memory=memory
        )
        result = loaded(found, folder, tmp_path, items=3, samples=8)
    assert (result.ended, result.errors, result.sent) == ("finished", {}, result.ok)
    assert result.items_ok == ask.statistics(found.model)["inference_count"] - before == 3 * result.ok > 0
    assert len(rows.read_rows(tmp_path)) == result.sent
    kept = sampling.read_outputs(found, result.samples, tmp_path / "raw")
    assert len({member for member, _ in kept}) > 1
    for member, outputs in kept:
        np.testing.assert_allclose(outputs["OUTPUT"], sums(folder, member, "FP16"), rtol=1e-6)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), Interrupted(signal.SIGTERM)])
def test_whatever_ends_a_run_its_region_goes_with_it(server: Server, error: BaseException) -> None:
    ask = KServe(server.http)
    with pytest.raises(type(error)), regions.opened("shared_memory", ask, "test", {}) as memory:
        assert memory is not None
        region, _ = memory.hold([b"some bytes"])
        assert ask.shared_memory("system") == [region.name]
        assert (SHM / region.name).read_bytes().startswith(b"some bytes")
        raise error


def test_what_a_killed_run_leaves_is_swept_and_what_a_living_one_holds_is_not(server: Server) -> None:
    program = f"""
import os, signal
from brim.kserve import KServe
from loadtest import regions
with regions.opened("shared_memory", KServe({server.http!r}), "test-killed", {{}}) as memory:
    print(memory.hold([bytes(1000)])[0].name, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ask = KServe(server.http)
    with regions.opened("shared_memory", ask, "test-living", {}) as memory:
        assert memory is not None
        region, _ = memory.hold([b"ours"])
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, cwd=layout.CHECKOUT, check=False
        )
        left = done.stdout.strip()
        assert done.returncode == -signal.SIGKILL
        assert (SHM / left).exists()
        assert set(ask.shared_memory("system")) == {left, region.name}

        assert [name for name in regions.sweep() if "-test-" in name] == [left]  # others' leftovers may lie there, too
        assert regions.sweep_server(ask) == [left]

        assert ask.shared_memory("system") == [region.name]
        assert (SHM / region.name).exists()
        assert memory.ensure_registered() == []


#: Loads the server of argv[1] with perf_analyzer over shared memory, and is killed in the middle of it.
KILLED_CROSS_CHECK = """
import os, signal, sys, time
from pathlib import Path
from brim.records import Access, LoadPoint
from loadtest import payload, target
from loadtest.control import control
from loadtest.driver import LoadSpec
from loadtest.perf_analyzer_driver import PerfAnalyzerDriver

url, model, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
pool = payload.prepare(target.describe(url, model, allowed={}, shapes={}), folder / "payload", items_per_request=2,
                       input_data=None, seed=1, pool=3)
spec = LoadSpec(url=url, model=model, version="", payload=str(pool), folder=str(folder / "raw"),
                rows=str(folder / "requests"), first_worker=0, seconds=30.0, timeout_s=10.0, drain_s=5.0, samples=0,
                point=LoadPoint(concurrency=2, items_per_request=2, transport="shared_memory"))
PerfAnalyzerDriver().start(spec, folder / "raw")
deadline = time.monotonic() + 20
while len(control(url, {}, Access()).shared_memory("system")) < 7 and time.monotonic() < deadline:
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_cross_check_leaves_here_and_on_the_server_is_swept(server: Server, tmp_path: Path) -> None:
    ask, model = KServe(server.http), image(8).name
    done = subprocess.run(
        [sys.executable, "-c", KILLED_CROSS_CHECK, server.http, model, str(tmp_path)],
        stderr=subprocess.PIPE, text=True, cwd=layout.CHECKOUT, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = ask.shared_memory("system")
    assert sorted(left) == [*(f"INPUT_0_{item}" for item in range(6)), "OUTPUT"]
    assert all((SHM / name).exists() for name in left)

    deadline = time.monotonic() + 10
    while ask.shared_memory("system") and time.monotonic() < deadline:  # perf_analyzer dies an instant after its parent
        with regions.opened("wire", ask, "test", {}):
            pass
    assert ask.shared_memory("system") == []
    assert not any((SHM / name).exists() for name in left)


def test_a_region_that_another_client_unregistered_is_missed_and_registered_again(
    server: Server, tmp_path: Path
) -> None:
    found, ask = described(server, 8), KServe(server.http)
    with regions.opened("shared_memory", ask, "test", {}) as memory:
        assert memory is not None
        folder = payload.prepare(
            found, tmp_path / "payload", items_per_request=1, input_data=None, seed=1, memory=memory
        )
        [region] = prepared.load(folder).regions
        ask.unregister_shared_memory("system", region.name)
        failed = loaded(found, folder, tmp_path / "failed")
        assert failed.ok == 0
        assert all("Unable to find shared memory region" in text and region.name in text for text in failed.errors)

        assert memory.ensure_registered() == [region.name]
        assert memory.ensure_registered() == []
        again = loaded(found, folder, tmp_path / "again")
    assert (again.errors, again.sent) == ({}, again.ok)


def test_a_request_beyond_its_region_fails_in_the_servers_own_words(server: Server, tmp_path: Path) -> None:
    found, ask = described(server, 8), KServe(server.http)
    with regions.opened("shared_memory", ask, "test", {}) as memory:
        folder = payload.prepare(
            found, tmp_path / "payload", items_per_request=1, input_data=None, seed=1, pool=2, memory=memory
        )
        offset = 3 * PIXELS * PIXELS
        request = folder / prepared.load(folder).members[1].request
        whole = request.read_bytes()
        assert b'"shared_memory_offset":%d' % offset in whole
        request.write_bytes(whole.replace(b":%d}" % offset, b":%d}" % (offset + 99)))
        result = loaded(found, folder, tmp_path)
    assert result.ok > 0
    assert result.failed > 0
    assert all("shared memory region" in text for text in result.errors)


def test_a_region_that_the_server_cannot_open_is_refused_in_one_line(server: Server, tmp_path: Path) -> None:
    """Like a server in a container of its own: it does not see our /dev/shm."""
    with (
        pytest.raises(NotReady, match=r"Unable to open shared memory region.*--allow-client-shm=true.*--ipc=host"),
        regions.opened("shared_memory", KServe(server.http), "test", {}, folder=tmp_path) as memory,
    ):
        assert memory is not None
        memory.hold([b"unseen"])
    assert list(tmp_path.iterdir()) == []
