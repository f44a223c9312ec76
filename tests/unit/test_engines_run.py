"""`python -m engines.run`: both jobs in a child process, and what a failure looks like to the parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brim.errors import UsageError
from brim.layout import CHECKOUT
from engines.engine import Port
from engines.run import complete, main, random_batch
from tests.unit.test_engines import twice


def spec_file(tmp_path: Path, spec: dict[str, Any]) -> str:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"result": str(tmp_path / "result.json"), **spec}))
    return str(path)


def run(tmp_path: Path, spec: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The job in this process: its exit code and what it wrote."""
    code = main([spec_file(tmp_path, spec)])
    return code, json.loads((tmp_path / "result.json").read_text())


def test_the_ceiling_adds_up_and_says_with_what_it_was_measured(tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    spec = {"job": "ceiling", "model": str(twice(tmp_path / "model.onnx")), "batch": 3, "cpus": [cpu]}
    spec |= {"seconds": 0.05, "min_batches": 7}
    command = [sys.executable, "-m", "engines.run", spec_file(tmp_path, spec)]
    subprocess.run(command, cwd=CHECKOUT, check=True)
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["batches"] >= 7 and found["seconds"] >= 0.05
    assert found["items"] == 3 * found["batches"] == 3 * len(found["batch_s"]["all"])
    assert found["items_per_s"] == pytest.approx(found["items"] / found["seconds"])
    assert sum(found["batch_s"]["all"]) <= found["seconds"]
    assert found["batch_s"]["median"] == pytest.approx(float(np.median(found["batch_s"]["all"])))
    assert found["cpus"] == [cpu]
    assert found["provider"] == "CPUExecutionProvider"
    assert found["software"]["numpy"] == np.__version__


def test_outputs_are_the_engines_answers_to_the_given_arrays(tmp_path: Path) -> None:
    given = [np.array([[1, 2]], np.float32), np.array([[3, 4], [5, 6]], np.float32)]
    for index, array in enumerate(given):
        np.save(tmp_path / f"{index}.npy", array)
    code, found = run(tmp_path, {
        "job": "outputs", "model": str(twice(tmp_path / "model.onnx")), "outputs_folder": str(tmp_path / "answers"),
        "samples": [{"input": str(tmp_path / f"{index}.npy")} for index in range(2)],
    })  # fmt: skip
    assert code == 0
    answers = [np.load(sample["output"], allow_pickle=False) for sample in found["samples"]]
    assert all(np.array_equal(answer, 2 * array) for answer, array in zip(answers, given, strict=True))


def test_a_corrupt_model_comes_back_as_one_line_and_its_exit_code(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x01nonsense")
    code, found = run(tmp_path, {"job": "ceiling", "model": str(tmp_path / "model.onnx"), "batch": 1})
    assert (code, found["word"]) == (2, "usage")
    assert str(tmp_path / "model.onnx") in found["error"] and "\n" not in found["error"]


def test_a_pickle_in_an_npy_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], object), allow_pickle=True)
    code, found = run(tmp_path, {
        "job": "outputs", "model": str(twice(tmp_path / "model.onnx")), "outputs_folder": str(tmp_path / "answers"),
        "samples": [{"input": str(tmp_path / "evil.npy")}],
    })  # fmt: skip
    assert code == 2
    assert "evil.npy" in found["error"]


def test_cores_that_do_not_exist_are_an_error_of_the_job_not_of_the_process(tmp_path: Path) -> None:
    spec = {"job": "ceiling", "model": str(twice(tmp_path / "model.onnx")), "batch": 1, "cpus": [4095]}
    code, found = run(tmp_path, spec)
    assert code != 0
    assert found["error"]


def test_without_a_usable_spec_the_child_says_so_on_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "spec.json").write_text("{")
    for arguments in ([], [str(tmp_path / "missing.json")], [str(tmp_path / "spec.json")]):
        assert main(arguments) == 2
        told = capsys.readouterr().err
        assert len(told.splitlines()) == 1 and "no usable spec" in told


def test_a_spec_gets_its_defaults_and_wrong_keys_are_named() -> None:
    spec = {"job": "ceiling", "model": "m", "result": "r", "batch": 4}
    assert complete(spec)["seconds"] == 5.0
    with pytest.raises(UsageError, match="did you mean 'ceiling'"):
        complete({**spec, "job": "cieling"})
    with pytest.raises(UsageError, match="unknown key 'bach'; did you mean 'batch'"):
        complete({**spec, "bach": 4})
    with pytest.raises(UsageError, match="key 'samples' is missing"):
        complete({"job": "outputs", "model": "m", "result": "r", "outputs_folder": "o"})


def test_random_batches_are_seeded_typed_and_need_a_closed_shape() -> None:
    ports = [
        Port(name="image", dtype=np.dtype("float16"), shape=(-1, 3, -1)),
        Port(name="index", dtype=np.dtype("int64"), shape=(-1, 2)),
    ]
    batch = random_batch(ports, {"image": [3, 5]}, 4, seed=1)
    again = random_batch(ports, {"image": [3, 5]}, 4, seed=1)
    assert batch["image"].shape == (4, 3, 5) and batch["image"].dtype == np.float16
    assert batch["index"].shape == (4, 2) and set(np.unique(batch["index"])) <= {0, 1}
    assert all(np.array_equal(batch[name], again[name]) for name in batch)
    assert not np.array_equal(batch["image"], random_batch(ports, {"image": [3, 5]}, 4, seed=2)["image"])
    with pytest.raises(UsageError, match=r"'image' has the open shape \[3, -1\]"):
        random_batch(ports, {}, 4, seed=1)
