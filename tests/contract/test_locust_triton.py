"""The Locust sender against the real tritonserver, and its request bytes against Triton's own client."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from brim import layout
from brim.kserve import KServe
from brim.records import KnownServer, LoadPoint, Server, ServingConfig, Status, Target, Tensor, Variant
from brim.say import Say
from loadtest import payload, request_bytes, rows, sampling, target
from loadtest.driver import LoadResult, LoadSpec
from loadtest.request_bytes import Input, Part
from loadtest.sender_driver import SenderDriver
from serve import embedded, known, variants
from tests.fakes import FakeServer

pytestmark = pytest.mark.contract


def variant(model: KnownServer, **config: Any) -> Variant:
    return Variant(model=model, config=ServingConfig(name="c", engine="known", backend="python", **config))


NULL = variant(known.known_server("null", {}), max_batch=8)
IMAGE = variant(known.known_server("image", {"pixels": 64}), max_batch=4)
NARROW = variant(known.known_server("sleep", {"service_ms": 20}), max_batch=1, max_queue_size=2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real server of a model that answers at once, one with large inputs, one with a short queue."""
    out = tmp_path_factory.mktemp("out")
    for each in (NULL, IMAGE, NARROW):
        variants.build(each, out=out, repository=out / "repository", viewed=())
    started = embedded.start(
        [v.name for v in (NULL, IMAGE, NARROW)], out=out, repository=out / "repository", say=Say(quiet=True)
    )
    yield started
    assert started.pid is not None
    process = psutil.Process(started.pid)
    process.terminate()
    process.wait(20)


def loaded(
    server: Server,
    of: Variant,
    run: Path,
    *,
    items: int = 1,
    concurrency: int = 8,
    samples: int = 0,
    compression: payload.Compression = "none",
) -> tuple[Target, LoadResult]:
    """A second of load on one variant."""
    found = target.describe(server.http, of.name, allowed={}, variant=of, server=server, shapes={})
    folder = payload.prepare(
        found, run / "payload", items_per_request=items, input_data=None, seed=1, compression=compression
    )
    spec = LoadSpec(
        url=server.http,
        model=of.name,
        version="",
        point=LoadPoint(concurrency=concurrency, items_per_request=items, compression=compression),
        payload=str(folder),
        folder=str(run / "raw"),
        rows=str(run / "requests"),
        first_worker=0,
        seconds=1.0,
        timeout_s=10.0,
        drain_s=5.0,
        samples=samples,
    )
    return found, SenderDriver().start(spec, run / "raw").finish()


def test_items_counted_by_the_sender_are_those_counted_by_triton(server: Server, tmp_path: Path) -> None:
    ask = KServe(server.http)
    before = ask.statistics(NULL.name)["inference_count"]
    found, result = loaded(server, NULL, tmp_path, items=2, samples=8)
    assert (result.ended, result.errors, result.sent) == ("finished", {}, result.ok)
    assert result.items_ok == ask.statistics(NULL.name)["inference_count"] - before == 2 * result.ok > 0
    assert len(rows.read_rows(tmp_path)) == result.sent
    kept = sampling.read_outputs(found, result.samples, tmp_path / "raw")
    assert kept
    for number, outputs in kept:
        sent = payload.read_inputs(tmp_path / "payload", number)["INPUT"]
        assert np.array_equal(outputs["OUTPUT"], sent)


def test_large_requests_arrive_whole(server: Server, tmp_path: Path) -> None:
    found, result = loaded(server, IMAGE, tmp_path, items=4, concurrency=4)
    assert (found.item, found.inputs[0].shape) == ("image", (3, 64, 64))
    assert (result.errors, result.sent) == ({}, result.ok)
    assert result.ok > 0


def test_compressed_requests_mean_to_triton_what_plain_ones_mean(server: Server, tmp_path: Path) -> None:
    """The oracle is the model, which repeats its input: what it gives back is what was sent before the compression."""
    found, result = loaded(server, NULL, tmp_path, items=8, samples=8, compression="gzip")
    assert (result.ended, result.errors, result.sent) == ("finished", {}, result.ok)
    kept = sampling.read_outputs(found, result.samples, tmp_path / "raw")
    assert kept
    for number, outputs in kept:
        assert np.array_equal(outputs["OUTPUT"], payload.read_inputs(tmp_path / "payload", number)["INPUT"])
    first = (tmp_path / "payload" / "request-0.http").read_bytes().partition(b"\r\n\r\n")[2]
    assert gzip.decompress(first)[:1] == b"{"


def test_a_compressed_request_arrives_as_that_of_tritons_own_client_does(tmp_path: Path) -> None:
    program = """
import sys
import numpy as np
import tritonclient.http as http
client = http.InferenceServerClient(sys.argv[1])
given = http.InferInput("x", [1, 4], "FP32")
given.set_data_from_numpy(np.load(sys.argv[2]), binary_data=True)
client.infer("tiny", [given], outputs=[http.InferRequestedOutput("y")], request_compression_algorithm="gzip")
client.close()
"""
    with FakeServer() as fake:  # decompresses, and then reads the JSON head by its announced length
        found = target.describe(fake.url, fake.model, allowed={}, shapes={})
        payload.prepare(found, tmp_path, items_per_request=1, input_data=None, seed=1, pool=1, compression="gzip")
        with socket.create_connection(("127.0.0.1", fake.port), 10) as ours:
            ours.sendall((tmp_path / "request-0.http").read_bytes())
            assert ours.recv(2**16).startswith(b"HTTP/1.1 200")
        where = [f"127.0.0.1:{fake.port}", str(tmp_path / "input-0-0.npy")]
        subprocess.run([sys.executable, "-c", program, *where], check=True, timeout=60)
        own, theirs = fake.log
    own_head, their_head = (entry.body[: -4 * 4] for entry in (own, theirs))
    assert own.body[-4 * 4 :] == theirs.body[-4 * 4 :]
    assert json.loads(own_head) == json.loads(their_head)


def test_a_full_queue_of_triton_is_a_rejection_and_not_an_error(server: Server, tmp_path: Path) -> None:
    _, result = loaded(server, NARROW, tmp_path, concurrency=12)
    assert result.rejected > 0
    assert result.ok + result.rejected + result.cancelled == result.sent
    assert [text for text in result.errors if "Exceeds maximum queue size" not in text] == []
    statuses = rows.read_rows(tmp_path)["status"]
    assert int((statuses == Status.REJECTED).sum()) == result.rejected


def test_the_request_body_means_what_tritons_own_client_means() -> None:
    rng = np.random.default_rng(1)
    inputs = [
        given(dtype, request_bytes.wire(payload.random_array(rng, dtype, (2, 3), dtype), dtype))
        for dtype in sorted(request_bytes.NUMPY)
        if dtype != "BF16"  # Triton's client wants it as FP32
    ]
    body, head = request_bytes.infer_body(inputs, ["y", "z"])
    theirs, their_head = tritons_own(inputs)
    assert body[head:] == theirs[their_head:]
    assert json.loads(body[:head]) == json.loads(theirs[:their_head])


def test_a_place_in_shared_memory_is_told_as_tritons_own_client_tells_it() -> None:
    inputs = [
        given("FP32", Part(region="r", offset=0, byte_size=24)),
        given("UINT8", bytes(6)),
        given("INT64", Part(region="r", offset=64, byte_size=48)),
    ]
    body, head = request_bytes.infer_body(inputs, ["y", "z"])
    theirs, their_head = tritons_own(inputs)
    assert body[head:] == theirs[their_head:] == bytes(6)
    assert json.loads(body[:head]) == json.loads(theirs[:their_head])


def given(dtype: str, data: bytes | Part) -> Input:
    return Input(tensor=Tensor(name=f"input_{dtype}", dtype=dtype, shape=(2, 3)), data=data)


def tritons_own(inputs: list[Input]) -> tuple[bytes, int]:
    """The body that tritonclient builds, in a process of its own: it brings gevent along."""
    program = """
import json, sys
import numpy as np
import tritonclient.http as http
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype
inputs = []
for name, dtype, data in json.load(sys.stdin):
    inputs.append(http.InferInput(name, [2, 3], dtype))
    if isinstance(data, dict):
        inputs[-1].set_shared_memory(data["region"], data["byte_size"], data["offset"])
        continue
    data = bytes.fromhex(data)
    array = deserialize_bytes_tensor(data) if dtype == "BYTES" else np.frombuffer(data, triton_to_np_dtype(dtype))
    inputs[-1].set_data_from_numpy(array.reshape(2, 3), binary_data=True)
outputs = [http.InferRequestedOutput(name, binary_data=True) for name in ("y", "z")]
body, head = http.InferenceServerClient.generate_request_body(inputs, outputs=outputs)
print(head, body.hex())
"""
    told = [
        (i.tensor.name, i.tensor.dtype, i.data.hex() if isinstance(i.data, bytes) else asdict(i.data)) for i in inputs
    ]
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        check=True,
        cwd=layout.CHECKOUT,
    )
    head, _, body = done.stdout.partition(" ")
    return bytes.fromhex(body.strip()), int(head)
