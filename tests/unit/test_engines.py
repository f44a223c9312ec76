"""Engines in this process: the right answer, on the provider asked for, and one clear line for a bad model file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from brim.errors import NotReady, UsageError
from brim.layout import CHECKOUT
from engines.digest import engines_digest
from engines.engine import open_engine
from engines.onnx_runtime import require_provider


def twice(path: Path, *, opset: int = 18) -> Path:
    """A model that doubles a batch of pairs."""
    two = numpy_helper.from_array(np.array([2], np.float32), "two")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["input", "two"], ["output"])],
        "twice",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 2])],
        initializer=[two],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def test_an_engine_computes_every_batch_size_and_names_its_ports(tmp_path: Path) -> None:
    engine = open_engine("onnxruntime", twice(tmp_path / "model.onnx"))
    assert engine.provider == "CPUExecutionProvider"
    assert [(p.name, p.dtype, p.shape) for p in engine.inputs] == [("input", np.dtype("float32"), (-1, 2))]
    assert [p.name for p in engine.outputs] == ["output"]
    for batch in (1, 2, 5):
        given = np.arange(2 * batch, dtype=np.float32).reshape(batch, 2)
        assert np.array_equal(engine.run({"input": given})["output"], 2 * given)


def test_an_engine_has_as_many_threads_as_it_was_given(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/task"))
    engine = open_engine("onnxruntime", twice(tmp_path / "model.onnx"), threads=3)
    assert len(os.listdir("/proc/self/task")) == before + 2  # the caller's own is the third
    engine.close()
    assert len(os.listdir("/proc/self/task")) == before


def test_a_provider_other_than_the_one_asked_for_is_refused() -> None:
    used = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert require_provider("CUDAExecutionProvider", used) == "CUDAExecutionProvider"
    for found in (["CPUExecutionProvider"], []):
        with pytest.raises(NotReady, match="not on CUDAExecutionProvider as asked"):
            require_provider("CUDAExecutionProvider", found)


def test_cuda_is_never_silently_replaced_by_the_cpu(tmp_path: Path) -> None:
    try:
        engine = open_engine("onnxruntime", twice(tmp_path / "model.onnx"), device="cuda")
    except (UsageError, NotReady) as error:
        assert "CUDA" in str(error)
    else:
        assert engine.provider == "CUDAExecutionProvider"


@pytest.mark.parametrize("device", ["gpu", "cpu:0", "cuda:x"])
def test_an_unknown_device_is_named(tmp_path: Path, device: str) -> None:
    with pytest.raises(UsageError, match=device):
        open_engine("onnxruntime", twice(tmp_path / "model.onnx"), device=device)


def test_an_unknown_engine_gets_a_did_you_mean(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'onnxruntime'"):
        open_engine("onnxruntme", tmp_path / "model.onnx")


def test_a_corrupt_model_file_is_named_in_one_line(tmp_path: Path) -> None:
    whole = twice(tmp_path / "whole.onnx").read_bytes()
    for name, content in {
        "noise.onnx": bytes(range(256)) * 8,
        "empty.onnx": b"",
        "cut.onnx": whole[: len(whole) // 2],
        "text.onnx": b"<html>404</html>",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=name) as caught:
            open_engine("onnxruntime", tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_model_file_that_is_missing_or_a_folder_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.onnx", tmp_path):
        with pytest.raises(UsageError, match=f"{path.name} is not a file"):
            open_engine("onnxruntime", path)


def test_an_operator_set_from_the_future_is_refused_with_the_runtimes_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="(?i)opset 999"):
        open_engine("onnxruntime", twice(tmp_path / "model.onnx", opset=999))


def test_weights_outside_the_models_folder_are_not_read(tmp_path: Path) -> None:
    model = onnx.load(twice(tmp_path / "inside.onnx"))
    onnx.external_data_helper.convert_model_to_external_data(model, location="two.bin", size_threshold=0)
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    assert open_engine("onnxruntime", folder / "model.onnx").provider  # beside the model: read
    (folder / "two.bin").rename(tmp_path / "two.bin")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../two.bin"
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match=r"model\.onnx: ONNX Runtime cannot load it"):
        open_engine("onnxruntime", folder / "model.onnx")


def test_a_batch_that_does_not_fit_the_model_is_refused_and_the_engine_goes_on(tmp_path: Path) -> None:
    engine = open_engine("onnxruntime", twice(tmp_path / "model.onnx"))
    good = np.ones((1, 2), np.float32)
    for bad in ({"input": np.ones((1, 3), np.float32)}, {"input": good.astype(np.float64)}, {"x": good}, {}):
        with pytest.raises(UsageError, match="refuses the batch"):
            engine.run(bad)
    assert engine.run({"input": good})["output"].tolist() == [[2.0, 2.0]]


def test_engine_options_reach_the_session_or_are_refused(tmp_path: Path) -> None:
    model = twice(tmp_path / "model.onnx")
    assert open_engine("onnxruntime", model, options={"session.disable_prepacking": "1"}).provider
    with pytest.raises(UsageError, match="cudnn_conv_algo_search"):
        open_engine("onnxruntime", model, options={"cudnn_conv_algo_search": "HEURISTIC"})


def test_the_digest_follows_every_byte_of_the_room_and_nothing_else(tmp_path: Path) -> None:
    copy = tmp_path / "engines"
    shutil.copytree(CHECKOUT / "engines", copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert engines_digest(copy) == engines_digest()
    (copy / "notes.txt").write_text("not code")
    assert engines_digest(copy) == engines_digest()
    (copy / "engine.py").write_text((copy / "engine.py").read_text() + "#")
    assert engines_digest(copy) != engines_digest()


def test_importing_the_engine_protocol_brings_no_runtime_and_no_other_room() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, engines.engine, engines.run; print(*sys.modules)"],
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert {name for name in loaded if name.startswith("brim")} == {"brim", "brim.errors"}
    assert not {"onnxruntime", "torch", "tritonclient", "locust", "export"} & loaded
