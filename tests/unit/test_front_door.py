"""The front door where something is in its way: an old Python, no click, a full or closed stdout, a file as `--out`."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from brim import __main__ as entry
from brim import layout
from brim.cli import VERBS
from tests.measuring import heard_of


def brim(*arguments: str, python: tuple[str, ...] = (), stdout: int = subprocess.PIPE) -> tuple[int, list[str]]:
    """Exit code and lines of stderr."""
    command = [sys.executable, *python, "-m", "brim", *arguments]
    done = subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=layout.CHECKOUT, timeout=60, check=False
    )
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("module", ["__init__", "__main__"])
def test_what_a_named_python_meets_first_parses_on_python_38(module: str) -> None:
    ast.parse((layout.CHECKOUT / "brim" / f"{module}.py").read_text("utf-8"), feature_version=(3, 8))


def test_a_python_that_is_too_old_is_told_so_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert entry.unfit() == ""
    monkeypatch.setattr(sys, "version_info", (3, 10, 12, "final", 0))
    assert "needs Python 3.11 or later" in entry.unfit() and "is 3.10.12; name another" in entry.unfit()


def test_a_python_without_click_is_told_so_in_one_line() -> None:
    code, lines = brim("gpu-check", python=("-S",))  # -S: none of the environment's packages
    assert code == 3
    assert len(lines) == 2 and "has no click" in lines[0] and "-m pip install click" in lines[0]
    assert lines[1] == "brim: exit 3 (not_ready)"


def test_a_full_stdout_is_a_lack_of_resources() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    code, lines = brim("--help", stdout=full)
    os.close(full)
    assert code == 6
    assert "standard output: no room left" in lines[0]
    assert lines[1:] == ["brim: exit 6 (resources)"]


def test_a_reader_that_has_left_already_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert brim("--help", stdout=writing) == (0, [])
    os.close(writing)


@pytest.mark.parametrize("verb", [verb for verb, (where, _) in VERBS.items() if where])
def test_a_file_where_the_folder_for_results_should_be_is_named(
    verb: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("")
    refused = heard_of(verb, "--out", str(tmp_path / "out"), capfd=capfd)
    assert refused.code == 6
    assert refused.errors == [
        f"brim: {tmp_path / 'out'} is a file, not a folder; remove it or choose another with --out",
        "brim: exit 6 (resources)",
    ]
    assert (tmp_path / "out").read_text() == ""


#: The frameworks of exporting hosts; a stand-in of each is found first, and is not there.
NOT_ON_A_LOAD_HOST = ("torch", "timm", "torchvision", "onnx", "onnxruntime")


@pytest.mark.parametrize("modules", ["experiments.measure.cli, experiments.measure.run", "loadtest.senders.locust_run"])
def test_a_host_that_only_loads_needs_no_framework(modules: str, tmp_path: Path) -> None:
    for name in NOT_ON_A_LOAD_HOST:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name} here', name={name!r})\n")
    done = subprocess.run(
        [sys.executable, "-c", f"import {modules}"],
        cwd=layout.CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    blocked = subprocess.run([sys.executable, "-c", "import torch"], cwd=tmp_path, capture_output=True, text=True)
    assert "no torch here" in blocked.stderr
