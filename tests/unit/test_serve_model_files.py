"""The python-backend models, with a stand-in for the module that Triton's stub brings."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import engine as engines_engine
from serve.executions import itemised_by_instance, read_executions
from serve.known import KINDS
from tests.python_stub import Backend, FakeTensor, answers, backend_in, model, request

Array = np.ndarray[Any, Any]


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
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Backend]:
    with backend_in(tmp_path, monkeypatch) as stand_in:
        yield stand_in


@pytest.mark.parametrize("kind", [*KINDS, "engine"])
@pytest.mark.parametrize("version", ["2.0.0", "2.4.6", "10.1"])
def test_no_model_starts_under_numpy_2(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, kind: str, version: str
) -> None:
    monkeypatch.setattr(np, "__version__", version)
    with pytest.raises(RuntimeError, match=f"under numpy {version} Triton's stub would serve zeros, it needs 1.26"):
        model(backend, kind)


def test_a_starting_model_logs_which_python_really_runs_it(backend: Backend) -> None:
    model(backend, "null")
    assert " ".join(sys.version.split()) in backend.logged[0]
    assert "null__b4_0_0" in backend.logged[0]


def test_the_isolated_interpreter_is_shown_the_checkout(backend: Backend) -> None:
    model(backend, "null")
    assert "/some/checkout" in sys.path


def test_a_known_server_without_a_place_for_its_truth_does_not_start(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BRIM_SERVER_FOLDER")
    with pytest.raises(RuntimeError, match="BRIM_SERVER_FOLDER is not set"):
        model(backend, "null")


def test_null_gives_each_request_its_own_input_and_logs_the_batch_at_once(backend: Backend) -> None:
    null = model(backend, "null")
    assert answers(null.execute([request([[1, 2]]), request([[3, 4], [5, 6]])])) == [
        {"OUTPUT": [[1, 2]]},
        {"OUTPUT": [[3, 4], [5, 6]]},
    ]
    [(start_ns, end_ns, items)] = read_executions(backend.folder, "null__b4")  # the model is still up
    assert items == 3
    assert start_ns < end_ns


def test_image_gives_the_sum_of_each_images_first_pixel(backend: Backend) -> None:
    pixels = np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2)
    image = model(backend, "image")
    [response] = image.execute([{"INPUT": FakeTensor("INPUT", pixels)}])
    assert answers([response]) == [{"OUTPUT": [[0 + 4 + 8], [12 + 16 + 20]]}]
    assert read_executions(backend.folder, "image__b4")[0][2] == 2


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, (255, 254, 253)), (np.float16, (65504, 65504, 1))])
def test_image_sums_in_fp32_what_its_inputs_dtype_cannot_hold(
    backend: Backend, dtype: Any, channels: tuple[int, ...]
) -> None:
    pixels = np.array(channels, dtype).reshape(1, 3, 1, 1)
    [response] = model(backend, "image").execute([{"INPUT": FakeTensor("INPUT", pixels)}])
    [output] = response.output_tensors
    assert output.array.dtype == np.float32
    assert output.array.tolist() == [[sum(channels)]]


def test_sleep_takes_its_service_time_for_a_batch_of_any_size(backend: Backend) -> None:
    sleep = model(backend, "sleep", {"brim.parameters": '{"service_ms": 5.0}'})
    sleep.execute([request([[1]])])
    assert answers(sleep.execute([request([[2]])] * 4)) == [{"OUTPUT": [[2]]}] * 4
    executions = read_executions(backend.folder, "sleep__b4")
    assert [items for _, _, items in executions] == [1, 4]
    assert all(end_ns - start_ns >= 5_000_000 for start_ns, end_ns, _ in executions)


CONFIG = json.dumps({"engine": "onnxruntime", "threads": 3, "engine_options": {"a": "b"}})


@pytest.fixture
def doubling(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Doubling, list[Any]]:
    """The engine model on top of Doubling, and what it opened it with."""
    engine, opened = Doubling(), []

    def open_engine(*arguments: Any, **options: Any) -> Doubling:
        opened.append((arguments, options))
        return engine

    monkeypatch.setattr(engines_engine, "open_engine", open_engine)
    return model(backend, "engine", {"brim.config": CONFIG, "brim.device": "cpu"}), engine, opened


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
    doubling: tuple[Any, Doubling, list[Any]], backend: Backend
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
    backend: Backend,
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
        again = model(backend, "engine", {"brim.config": CONFIG, "brim.device": "cpu"})
        for _ in range(2):
            assert answers(again.execute([request([[1]], "x")])) == [{"y": [[2]], "z": [[1]]}]
        assert file.exists() != remove


def test_the_itemised_log_ends_where_it_would_grow_without_bound(
    doubling: tuple[Any, Doubling, list[Any]], backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["serve.models.stub"], "ITEMISED_LINES", 2)
    served = model(backend, "engine", {"brim.config": CONFIG, "brim.device": "cpu"})
    for value in range(4):
        assert answers(served.execute([request([[value]], "x")])) == [{"y": [[2 * value]], "z": [[value]]}]
    assert len(itemised_by_instance(backend.folder, "engine__b4")["0_0"]) == 2
