"""The engine alone beside the served model: kept answers compared value by value, with a real engine."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from brim import layout
from brim.errors import InvalidRecord, NotReady
from brim.records import ModelCard, ServingConfig, Target, Tensor, Variant
from engines import run as job
from experiments.measure import alone
from experiments.measure.alone import Kept
from judging import checks
from judging.tolerances import PARITY
from loadtest import payload
from loadtest.driver import Sample

X, Y = Tensor(name="x", dtype="FP32", shape=(2,)), Tensor(name="y", dtype="FP32", shape=(2,))
VARIANT = Variant(
    model=ModelCard(
        name="twice", source="onnx/twice", inputs=(X,), outputs=(Y,), precision="fp32", weights="seeded:0",
        artifacts={"model.onnx": "0"}, recipe="",
    ),
    config=ServingConfig(name="b4"),
)  # fmt: skip
TARGET = Target(
    url="http://127.0.0.1:8000", model="twice__b4", version="", inputs=(X,), outputs=(Y,), max_batch=4, instances=1,
    server_name="triton", server_version="2", variant=VARIANT,
)  # fmt: skip
POOL = 3


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's real job without the second that a process of its own takes to start."""

    def run_engine(spec: Mapping[str, Any], folder: Path, *, python: Path, limit_s: float) -> dict[str, Any]:
        return job.do(job.complete({**spec, "result": str(folder / "result.json")}))

    monkeypatch.setattr(alone, "run_engine", run_engine)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = 2 x."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        "twice",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        initializer=[numpy_helper.from_array(np.array([2], np.float32), "two")],
    )
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(made.SerializeToString())
    onnx.checker.check_model(made)
    return path


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return payload.prepare(
        TARGET, tmp_path_factory.mktemp("pool"), items_per_request=1, input_data=None, seed=1, pool=POOL
    )


def keep(folder: Path, answers: list[tuple[int, np.ndarray]]) -> Kept:
    """Responses as a sender keeps them: which request was sent, and the body that came back."""
    folder.mkdir(parents=True)
    samples = []
    for number, (index, values) in enumerate(answers):
        data = np.ascontiguousarray(values, np.float32).tobytes()
        entry = {"name": "y", "datatype": "FP32", "shape": list(values.shape)}
        head = json.dumps({"outputs": [{**entry, "parameters": {"binary_data_size": len(data)}}]}).encode()
        (folder / f"{number}.bin").write_bytes(head + data)
        samples.append(Sample(payload=index, file=f"{number}.bin", json_bytes=len(head)))
    return Kept(folder=folder, samples=tuple(samples))


def right(pool: Path, index: int) -> np.ndarray:
    return 2 * payload.read_inputs(pool, index)["x"]


def compare(model: Path, pool: Path, kept: list[Kept], folder: Path) -> alone.Values:
    return alone.compare_values(TARGET, VARIANT, model, pool, kept, folder / "values")


def rule_7(values: alone.Values) -> str:
    check = checks.outputs(
        responses=10, malformed=0, samples=values.compared, max_relative_error=values.max_relative_error,
        bound=PARITY["fp32"],
    )  # fmt: skip
    return check.state


@pytest.mark.usefixtures("in_process")
def test_answers_of_two_loads_that_are_the_engines_own_hold_rule_7(model: Path, pool: Path, tmp_path: Path) -> None:
    one = keep(tmp_path / "one", [(2, right(pool, 2)), (0, right(pool, 0))])
    two = keep(tmp_path / "two", [(2, right(pool, 2))])
    values = compare(model, pool, [one, two], tmp_path)
    assert (values.compared, values.max_relative_error) == (3, 0.0)
    assert rule_7(values) == "held"


@pytest.mark.usefixtures("in_process")
def test_one_altered_response_among_good_ones_breaks_rule_7(model: Path, pool: Path, tmp_path: Path) -> None:
    wrong = right(pool, 1).copy()
    largest = float(np.abs(wrong).max())
    wrong[0, 0] += 0.01 * largest
    kept = keep(tmp_path / "load", [(0, right(pool, 0)), (1, wrong), (2, right(pool, 2))])
    values = compare(model, pool, [kept], tmp_path)
    assert values.max_relative_error == pytest.approx(0.01, rel=1e-4)
    assert rule_7(values) == "broken"


@pytest.mark.usefixtures("in_process")
def test_the_right_answer_to_another_request_breaks_rule_7(model: Path, pool: Path, tmp_path: Path) -> None:
    values = compare(model, pool, [keep(tmp_path / "load", [(0, right(pool, 1))])], tmp_path)
    assert rule_7(values) == "broken"


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("answer", [np.full((1, 2), np.nan), np.full((1, 2), np.inf), np.zeros((2, 2)), np.zeros(2)])
def test_what_is_not_finite_or_has_another_shape_is_infinitely_wrong(
    model: Path, pool: Path, tmp_path: Path, answer: np.ndarray
) -> None:
    values = compare(model, pool, [keep(tmp_path / "load", [(0, answer)])], tmp_path)
    assert values.max_relative_error == math.inf
    assert rule_7(values) == "broken"


@pytest.mark.usefixtures("in_process")
def test_no_kept_response_is_no_proof(model: Path, pool: Path, tmp_path: Path) -> None:
    values = compare(model, pool, [keep(tmp_path / "load", [])], tmp_path)
    assert values.compared == 0
    assert rule_7(values) == "broken"


@pytest.mark.usefixtures("in_process")
def test_a_kept_response_that_does_not_hold_together_is_named(model: Path, pool: Path, tmp_path: Path) -> None:
    kept = keep(tmp_path / "load", [(0, right(pool, 0))])
    body = (kept.folder / "0.bin").read_bytes()
    (kept.folder / "0.bin").write_bytes(body[:-1])
    with pytest.raises(InvalidRecord, match=r"0\.bin: not the answer of twice__b4"):
        compare(model, pool, [kept], tmp_path)


def test_the_ceiling_is_the_batch_over_the_median_batch_summed_over_as_many_engines_as_there_are_instances(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "stub_python", lambda: Path(sys.executable))  # where only unit tests run there is none
    monkeypatch.setattr(alone, "CEILING_SECONDS", 0.05)
    twofold = replace(VARIANT, config=replace(VARIANT.config, instances=2))
    rate = alone.ceiling(twofold, model, 4, tmp_path)
    told = [json.loads(file.read_text()) for file in tmp_path.glob("*/result.json")]
    assert len(told) == 2
    assert rate == pytest.approx(sum(4 / one["batch_s"]["median"] for one in told))
    for one in told:
        assert (one["batch"], one["threads"]) == (4, 1)
        assert one["seconds"] >= 0.05


def test_an_engine_that_cannot_open_the_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "stub_python", lambda: Path(sys.executable))
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(NotReady, match="the engine alone failed: .*model.onnx"):
        alone.ceiling(VARIANT, tmp_path / "model.onnx", 1, tmp_path)
