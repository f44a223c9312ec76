"""The lock that keeps two measurements on one machine apart: the same for every shell and user."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from experiments.measure.ledger import machine_lock


def test_the_machines_lock_does_not_follow_a_shells_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = machine_lock()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert tempfile.gettempdir() == str(tmp_path)
    assert machine_lock() == before
