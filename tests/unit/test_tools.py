"""What set-up placed: its manifest as it is read, and how a program that does not run is told of."""

from __future__ import annotations

from pathlib import Path

import pytest

from brim import layout, tools


def place(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo usage: --model-repository >&2; exit 1", None),  # it ran, whatever its exit code
        ("echo x: error while loading shared libraries: libx.so >&2; echo more >&2; exit 127",
         "x: error while loading shared libraries: libx.so"),
        ("echo version GLIBC_2.38 not found '(required by x)' >&2; exit 1",
         "version GLIBC_2.38 not found (required by x)"),
        ("echo something else", "something else"),
        ("exit 3", "exit code 3, no output"),
    ],
)  # fmt: skip
def test_a_server_runs_if_it_knows_its_flags_and_otherwise_the_loaders_words_are_told(
    script: str, why: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tmp_path / "tritonserver", script)
    monkeypatch.setattr(layout, "tritonserver", lambda: tmp_path / "tritonserver")
    assert tools.server_refuses() == why


def test_a_program_that_is_not_there_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "perf_analyzer", lambda: tmp_path / "absent")
    assert tools.perf_analyzer_refuses() == "not there"


@pytest.mark.parametrize(
    ("text", "found"),
    [('{"schema": 1, "binaries": {}}', {"schema": 1, "binaries": {}}), ('{"schema": 2}', {}), ("[]", {}), ("{", {})],
)
def test_a_manifest_of_another_form_counts_as_none(
    text: str, found: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "tools_manifest", lambda: tmp_path / "manifest.json")
    assert tools.read_manifest() == {}
    (tmp_path / "manifest.json").write_text(text)
    assert tools.read_manifest() == found
