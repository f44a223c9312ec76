"""Variants on the real tritonserver: what it read of their configs, what they answer, and what they log."""

from __future__ import annotations

import http.client
import json
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from brim import codec, disk, layout
from brim.kserve import KServe
from brim.records import ModelCard, Server, ServingConfig, Tensor, Variant
from brim.say import Say
from serve import embedded, ledger
from serve.executions import itemised_by_instance, read_executions
from serve.variants import build, plan_variants

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(not layout.tools_manifest().exists(), reason="no .tools/: `make serve` sets them up"),
]

Array = np.ndarray[Any, Any]

SERVICE_MS = 20.0
CONFIGS = """
[b4]
[b1]
max_batch = 1
[full]
max_batch = 8
preferred_batches = [4, 8]
queue_delay_us = 300
max_queue_size = 64
queue_timeout_us = 9000000
instances = 2
"""
MODELS = ["net", "net__full", "broken", "null", "null__b1", "image", f"sleep:service_ms={SERVICE_MS:g}"]


def small_convolution() -> bytes:
    """An ONNX file: convolution, ReLU and mean, so that a row of the output is of the whole of its own input."""
    weights = np.random.default_rng(7).standard_normal((5, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("GlobalAveragePool", ["r"], ["p"]),
            helper.make_node("Flatten", ["p"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def export(out: Path, name: str, content: bytes) -> None:
    """What export would leave behind."""
    file = layout.model_folder(out, name) / "model.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    card = ModelCard(
        name=name,
        source="brim/demo",
        inputs=(Tensor(name="x", dtype="FP32", shape=(3, 16, 16)),),
        outputs=(Tensor(name="y", dtype="FP32", shape=(5,)),),
        precision="fp32",
        weights="seeded:7",
        artifacts={"model.onnx": disk.sha256(file)},
        recipe="r",
    )
    disk.save(layout.card_file(out, name), card)


@dataclass(frozen=True, kw_only=True)
class Served:
    """A live server and what was asked of it."""

    out: Path
    server: Server
    variants: dict[str, Variant]

    @property
    def questions(self) -> KServe:
        return KServe(self.server.http)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    out, repository, configs = folder / "out", folder / "repository", folder / "configs.toml"
    configs.write_text(CONFIGS)
    export(out, "net", small_convolution())
    export(out, "broken", b"not a network")
    variants = plan_variants(MODELS, [], out=out, configs_file=configs, mode="embedded")
    for variant in variants:
        build(variant, out=out, repository=repository, viewed=())
    names = [variant.name for variant in variants]
    server = embedded.start(names, out=out, repository=repository, say=Say(quiet=True))
    yield Served(out=out, server=server, variants={variant.name: variant for variant in variants})
    ledger.stop(server, out)


def infer(server: Server, variant: Variant, array: Array) -> Array:
    """One request with binary tensors; what the server says becomes an AssertionError if it is not an answer."""
    [taken], [given] = variant.model.inputs, variant.model.outputs
    head = {
        "inputs": [
            {
                "name": taken.name,
                "datatype": taken.dtype,
                "shape": list(array.shape),
                "parameters": {"binary_data_size": array.nbytes},
            }
        ],
        "outputs": [{"name": given.name, "parameters": {"binary_data": True}}],
    }
    told = json.dumps(head).encode()
    address = urlsplit(server.http)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
    try:
        connection.request(
            "POST",
            f"/v2/models/{variant.name}/infer",
            told + array.tobytes(),
            {"Inference-Header-Content-Length": str(len(told))},
        )
        answer = connection.getresponse()
        content = answer.read()
    finally:
        connection.close()
    assert answer.status == 200, content
    start = int(answer.headers["Inference-Header-Content-Length"])
    [output] = json.loads(content[:start])["outputs"]
    return np.frombuffer(content[start:], dtype=np.float32).reshape(output["shape"])


def at_once(server: Server, variant: Variant, arrays: Sequence[Array]) -> list[Array]:
    """One request for each array, all sent together."""
    barrier = threading.Barrier(len(arrays))

    def send(array: Array) -> Array:
        barrier.wait(timeout=30)
        return infer(server, variant, array)

    with ThreadPoolExecutor(len(arrays)) as threads:
        return list(threads.map(send, arrays))


def random(variant: Variant, rows: int, seed: int) -> Array:
    shape = (rows, *variant.model.inputs[0].shape)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_every_variant_is_ready_but_the_broken_one_which_says_what_is_wrong_with_it(served: Served) -> None:
    index = {entry["name"]: entry for entry in served.questions.repository_index()}
    assert {name for name, entry in index.items() if entry["state"] == "READY"} == {*served.variants} - {"broken__b4"}
    assert index["broken__b4"]["state"] == "UNAVAILABLE"
    assert "model.onnx: ONNX Runtime cannot load it" in index["broken__b4"]["reason"]


@pytest.mark.parametrize("name", ["net__b4", "net__full", "null__b1", "sleep__b4"])
def test_the_server_uses_the_config_that_was_written(served: Served, name: str) -> None:
    variant = served.variants[name]
    config = variant.config
    used = served.questions.model_config(name)
    batching = used["dynamic_batching"]
    policy = batching["default_queue_policy"]
    assert codec.from_json(ServingConfig, used["parameters"]["brim.config"]["string_value"], where=name) == config
    assert used["parameters"]["brim.digest"]["string_value"] == variant.model.digest
    assert (used["name"], used["backend"], used["max_batch_size"]) == (name, config.backend, config.max_batch)
    # The server itself fills an empty list with the largest batch.
    assert batching["preferred_batch_size"] == list(config.preferred_batches or [config.max_batch])
    assert batching["max_queue_delay_microseconds"] == config.queue_delay_us
    assert policy["max_queue_size"] == config.max_queue_size
    assert policy["default_timeout_microseconds"] == config.queue_timeout_us
    assert policy["timeout_action"] == "REJECT"
    assert [(group["kind"], group["count"]) for group in used["instance_group"]] == [("KIND_CPU", config.instances)]
    assert [warmup["batch_size"] for warmup in used["model_warmup"]] == sorted({1, config.max_batch})
    assert [(i["name"], i["dims"]) for i in used["input"]] == [(t.name, list(t.shape)) for t in variant.model.inputs]
    assert [(o["name"], o["dims"]) for o in used["output"]] == [(t.name, list(t.shape)) for t in variant.model.outputs]


def test_null_echoes_single_items_and_batches(served: Served) -> None:
    variant = served.variants["null__b4"]
    for rows in (1, 3, 4):
        sent = random(variant, rows, seed=rows)
        np.testing.assert_array_equal(infer(served.server, variant, sent), sent)


def test_image_sums_the_first_pixel_of_every_image(served: Served) -> None:
    variant = served.variants["image__b4"]
    sent = random(variant, 3, seed=1)
    expected = [[float(image[0, 0, 0]) + float(image[1, 0, 0]) + float(image[2, 0, 0])] for image in sent]
    np.testing.assert_allclose(infer(served.server, variant, sent), expected, rtol=1e-5)


def test_a_batch_beyond_max_batch_is_refused_by_the_server_and_not_cut(served: Served) -> None:
    variant = served.variants["null__b1"]
    with pytest.raises(AssertionError, match="batch-size must be <= 1"):
        infer(served.server, variant, random(variant, 2, seed=0))


def test_sleep_serves_full_batches_in_its_service_time_and_the_server_counts_what_it_logged(served: Served) -> None:
    variant = served.variants["sleep__b4"]
    before = served.questions.statistics(variant.name)
    logged_before = len(read_executions(Path(str(served.server.log)).parent, variant.name))
    sent = [random(variant, 1, seed=seed) for seed in range(16)]

    for given, got in zip(sent, at_once(served.server, variant, sent), strict=True):
        np.testing.assert_array_equal(got, given)

    executions = read_executions(Path(str(served.server.log)).parent, variant.name)[logged_before:]
    after = served.questions.statistics(variant.name)
    sizes = [items for _, _, items in executions]
    assert sum(sizes) == after["inference_count"] - before["inference_count"] == 16
    assert len(sizes) == after["execution_count"] - before["execution_count"]
    assert max(sizes) == 4
    services_ms = [(end_ns - start_ns) / 1e6 for start_ns, end_ns, _ in executions]
    assert SERVICE_MS <= min(services_ms) <= SERVICE_MS + 0.5  # the best: others may keep one waiting, a defect all
    assert all(end_ns <= start_ns for (_, end_ns, _), (start_ns, _, _) in zip(executions, executions[1:], strict=False))


def engine_in_process(out: Path, variant: Variant, arrays: Sequence[Array], folder: Path) -> list[Array]:
    """What the same engine answers alone, in the environment that the stub runs in."""
    [taken], [given] = variant.model.inputs, variant.model.outputs
    samples = []
    for number, array in enumerate(arrays):
        np.save(folder / f"{number}.npy", array)
        samples.append({taken.name: str(folder / f"{number}.npy")})
    spec = {
        "job": "outputs",
        "model": str(layout.model_folder(out, variant.model.name) / "model.onnx"),
        "threads": variant.config.threads,
        "samples": samples,
        "outputs_folder": str(folder / "outputs"),
        "result": str(folder / "result.json"),
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    subprocess.run(
        [str(layout.stub_python()), "-m", "engines.run", str(folder / "spec.json")],
        env={"PYTHONPATH": str(layout.CHECKOUT)},
        check=True,
        timeout=60,
    )
    answered = json.loads((folder / "result.json").read_text())["samples"]
    return [np.load(sample[given.name], allow_pickle=False) for sample in answered]


def test_a_served_model_answers_as_its_engine_does_alone_with_every_request_its_own_rows(
    served: Served, tmp_path: Path
) -> None:
    variant = served.variants["net__full"]  # two instances, batches up to 8 that wait to grow
    before = served.questions.statistics(variant.name)
    sent = [random(variant, 1 + seed % 3, seed) for seed in range(24)]

    answers = at_once(served.server, variant, sent)

    after = served.questions.statistics(variant.name)
    executions = after["execution_count"] - before["execution_count"]
    assert executions < len(sent)  # so several requests did share a batch
    for got, alone in zip(answers, engine_in_process(served.out, variant, sent, tmp_path), strict=True):
        np.testing.assert_allclose(got, alone, rtol=1e-5, atol=1e-6)
    assert len({answer.tobytes() for answer in answers}) == len(sent)  # and could have been mistaken for each other


def test_an_engines_log_has_a_line_for_each_batch_that_the_server_counts(served: Served) -> None:
    variant = served.variants["net__full"]
    at_once(served.server, variant, [random(variant, 1, seed) for seed in range(8)])
    counted = served.questions.statistics(variant.name)
    logs = itemised_by_instance(Path(str(served.server.log)).parent, variant.name)
    assert sorted(logs) == ["0_0", "0_1"]  # both instances; warm-up is counted and logged alike
    batches = [batch for log in logs.values() for batch in log]
    assert len(batches) == counted["execution_count"]
    assert sum(batch.items for batch in batches) == counted["inference_count"]
    infer_ns = sum(entry["compute_infer"]["ns"] for entry in counted["batch_stats"])
    assert sum(batch.run_ns for batch in batches) < infer_ns  # which includes the way to the stub and back


def test_the_log_says_which_python_each_instance_runs_and_on_which_provider(served: Served) -> None:
    log = Path(str(served.server.log)).read_text()
    version = subprocess.run(
        [str(layout.stub_python()), "-c", "import sys; print(sys.version.split()[0])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    for instance in ("net__full_0_0", "net__full_0_1", "null__b4_0_0"):
        assert f"Brim: {instance} runs in Python {version} " in log
    assert "Brim: net__full_0_1 computes on CPUExecutionProvider" in log
