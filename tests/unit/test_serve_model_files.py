"""The python-backend models, with a stand-in for the module that Triton's stub brings."""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import engine as engines_engine
from serve.executions import itemised_by_instance, read_executions

Array = np.ndarray[Any, Any]


@dataclass
class FakeTensor:
    name: str
    array: Array

    def as_numpy(self) -> Array:
        return self.array


@dataclass
class FakeResponse:
    """Like the stub's: either outputs or an error."""

    output_tensors: list[FakeTensor] | None = None
    error: str | None = None


class Doubling:
    """An engine that doubles, and remembers every batch that it got."""

    provider = "TestProvider"
    inputs = (types.SimpleNamespace(name="x"),)

    def __init__(self) -> None:
        self.batches: list[Array] = []

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        self.batches.append(inputs["x"])
        if inputs["x"].max() > 99:
            raise ValueError("too large for me")
        return {"y": inputs["x"] * 2, "z": inputs["x"].sum(axis=1, keepdims=True)}

    def close(self) -> None:
        self.batches.clear()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[types.SimpleNamespace]:
    """The module that only Triton's stub has, and an environment like the launcher's."""
    logged: list[str] = []
    module = types.ModuleType("triton_python_backend_utils")
    module.__dict__.update(
        Tensor=FakeTensor,
        InferenceResponse=FakeResponse,
        TritonError=str,
        get_input_tensor_by_name=lambda request, name: request[name],
        Logger=types.SimpleNamespace(log_info=logged.append),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    monkeypatch.setenv("BRIM_SERVER_FOLDER", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", "/some/checkout")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(np, "__version__", "1.26.4")
    made: list[Any] = []
    yield types.SimpleNamespace(logged=logged, folder=tmp_path, made=made)
    for each in made:
        each.finalize()
    for name in [name for name in sys.modules if name.startswith("serve.models")]:
        del sys.modules[name]


def model(backend: types.SimpleNamespace, kind: str, **parameters: str) -> Any:
    """A model as the stub makes it, ended with the test."""
    made = importlib.import_module(f"serve.models.{kind}").TritonPythonModel()
    config = {"parameters": {key: {"string_value": value} for key, value in parameters.items()}}
    made.initialize(
        {
            "model_name": f"{kind}__b4",
            "model_instance_name": f"{kind}__b4_0_0",
            "model_repository": "/repository/v",
            "model_version": "1",
            "model_config": json.dumps(config),
        }
    )
    backend.made.append(made)
    return made


def request(values: list[list[float]], name: str = "INPUT") -> dict[str, FakeTensor]:
    return {name: FakeTensor(name, np.array(values, dtype=np.float32))}


def answers(responses: list[FakeResponse]) -> list[dict[str, Any]]:
    return [{t.name: t.array.tolist() for t in response.output_tensors or ()} for response in responses]


@pytest.mark.parametrize("kind", ["null", "image", "sleep", "engine"])
@pytest.mark.parametrize("version", ["2.0.0", "2.4.6", "10.1"])
def test_no_model_starts_under_numpy_2(
    backend: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch, kind: str, version: str
) -> None:
    monkeypatch.setattr(np, "__version__", version)
    with pytest.raises(RuntimeError, match=f"under numpy {version} Triton's stub would serve zeros, it needs 1.26"):
        model(backend, kind)


def test_a_starting_model_logs_which_python_really_runs_it(backend: types.SimpleNamespace) -> None:
    model(backend, "null")
    assert " ".join(sys.version.split()) in backend.logged[0]
    assert "null__b4_0_0" in backend.logged[0]


def test_the_isolated_interpreter_is_shown_the_checkout(backend: types.SimpleNamespace) -> None:
    model(backend, "null")
    assert "/some/checkout" in sys.path


def test_a_known_server_without_a_place_for_its_truth_does_not_start(
    backend: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BRIM_SERVER_FOLDER")
    with pytest.raises(RuntimeError, match="BRIM_SERVER_FOLDER is not set"):
        model(backend, "null")


def test_null_gives_each_request_its_own_input_and_logs_the_batch_at_once(backend: types.SimpleNamespace) -> None:
    null = model(backend, "null")
    assert answers(null.execute([request([[1, 2]]), request([[3, 4], [5, 6]])])) == [
        {"OUTPUT": [[1, 2]]},
        {"OUTPUT": [[3, 4], [5, 6]]},
    ]
    [(start_ns, end_ns, items)] = read_executions(backend.folder, "null__b4")  # the model is still up
    assert items == 3
    assert start_ns < end_ns


def test_image_gives_the_sum_of_each_images_first_pixel(backend: types.SimpleNamespace) -> None:
    pixels = np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2)
    image = model(backend, "image")
    [response] = image.execute([{"INPUT": FakeTensor("INPUT", pixels)}])
    assert answers([response]) == [{"OUTPUT": [[0 + 4 + 8], [12 + 16 + 20]]}]
    assert read_executions(backend.folder, "image__b4")[0][2] == 2


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, (255, 254, 253)), (np.float16, (65504, 65504, 1))])
def test_image_sums_in_fp32_what_its_inputs_dtype_cannot_hold(
    backend: types.SimpleNamespace, dtype: Any, channels: tuple[int, ...]
) -> None:
    pixels = np.array(channels, dtype).reshape(1, 3, 1, 1)
    [response] = model(backend, "image").execute([{"INPUT": FakeTensor("INPUT", pixels)}])
    [output] = response.output_tensors
    assert output.array.dtype == np.float32
    assert output.array.tolist() == [[sum(channels)]]


def test_sleep_takes_its_service_time_for_a_batch_of_any_size(backend: types.SimpleNamespace) -> None:
    sleep = model(backend, "sleep", **{"brim.parameters": '{"service_ms": 5.0}'})
    sleep.execute([request([[1]])])
    assert answers(sleep.execute([request([[2]])] * 4)) == [{"OUTPUT": [[2]]}] * 4
    executions = read_executions(backend.folder, "sleep__b4")
    assert [items for _, _, items in executions] == [1, 4]
    assert all(end_ns - start_ns >= 5_000_000 for start_ns, end_ns, _ in executions)


CONFIG = json.dumps({"engine": "onnxruntime", "threads": 3, "engine_options": {"a": "b"}})


@pytest.fixture
def doubling(backend: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Doubling, list[Any]]:
    """The engine model on top of Doubling, and what it opened it with."""
    engine, opened = Doubling(), []

    def open_engine(*arguments: Any, **options: Any) -> Doubling:
        opened.append((arguments, options))
        return engine

    monkeypatch.setattr(engines_engine, "open_engine", open_engine)
    return model(backend, "engine", **{"brim.config": CONFIG, "brim.device": "cpu"}), engine, opened


def test_the_engine_is_opened_once_as_the_config_says(doubling: tuple[Any, Doubling, list[Any]]) -> None:
    served, _, opened = doubling
    served.execute([request([[1]], "x")])
    served.execute([request([[1]], "x")])
    assert opened == [
        (
            ("onnxruntime", Path("/repository/v/1/model.onnx")),
            {"threads": 3, "device": "cpu", "options": {"a": "b"}},
        )
    ]


def test_a_batch_runs_once_and_every_request_gets_its_own_rows(doubling: tuple[Any, Doubling, list[Any]]) -> None:
    served, engine, _ = doubling
    responses = served.execute([request([[1, 1]], "x"), request([[2, 2], [3, 3]], "x"), request([[4, 4]], "x")])
    assert answers(responses) == [
        {"y": [[2, 2]], "z": [[2]]},
        {"y": [[4, 4], [6, 6]], "z": [[4], [6]]},
        {"y": [[8, 8]], "z": [[8]]},
    ]
    assert [batch.shape for batch in engine.batches] == [(4, 2)]


def test_a_request_alone_is_not_copied(doubling: tuple[Any, Doubling, list[Any]]) -> None:
    served, engine, _ = doubling
    alone = request([[1, 1]], "x")
    served.execute([alone])
    assert engine.batches[0] is alone["x"].array


def test_what_the_engine_refuses_is_told_to_every_request_of_the_batch_and_the_next_is_served(
    doubling: tuple[Any, Doubling, list[Any]],
) -> None:
    served, _, _ = doubling
    responses = served.execute([request([[1]], "x"), request([[100]], "x")])
    assert [response.error for response in responses] == ["too large for me"] * 2
    assert answers(served.execute([request([[1]], "x")])) == [{"y": [[2]], "z": [[1]]}]


def test_an_engine_logs_where_the_time_of_each_batch_went(
    doubling: tuple[Any, Doubling, list[Any]], backend: types.SimpleNamespace
) -> None:
    served, _, _ = doubling
    served.execute([request([[1]], "x"), request([[2], [3]], "x")])
    served.execute([request([[4]], "x")])
    assert served.execute([request([[100]], "x")])[0].error  # refused: a batch without an answer has no line
    batches = itemised_by_instance(backend.folder, "engine__b4")["0_0"]
    assert [batch.items for batch in batches] == [3, 1]
    for batch in batches:
        parts_ns = batch.copy_in_ns + batch.concatenate_ns + batch.run_ns + batch.copy_out_ns
        assert parts_ns == batch.end_ns - batch.start_ns > 0


def test_an_engine_serves_on_when_its_log_has_no_place_or_no_room(
    doubling: tuple[Any, Doubling, list[Any]],
    backend: types.SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served, _, _ = doubling
    served.finalize()
    for remove in (False, True):
        file = backend.folder / "itemised-engine__b4.0_0.csv"
        file.unlink()
        if remove:
            monkeypatch.delenv("BRIM_SERVER_FOLDER")
        else:
            file.symlink_to("/dev/full")
        again = model(backend, "engine", **{"brim.config": CONFIG, "brim.device": "cpu"})
        for _ in range(2):
            assert answers(again.execute([request([[1]], "x")])) == [{"y": [[2]], "z": [[1]]}]
        assert file.exists() != remove


def test_the_itemised_log_ends_where_it_would_grow_without_bound(
    doubling: tuple[Any, Doubling, list[Any]], backend: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["serve.models.stub"], "ITEMISED_LINES", 2)
    served = model(backend, "engine", **{"brim.config": CONFIG, "brim.device": "cpu"})
    for value in range(4):
        assert answers(served.execute([request([[value]], "x")])) == [{"y": [[2 * value]], "z": [[value]]}]
    assert len(itemised_by_instance(backend.folder, "engine__b4")["0_0"]) == 2
