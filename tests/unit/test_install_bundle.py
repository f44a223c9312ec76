"""What goes into a bundle, and what its installer refuses."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from install import offline
from install.bundle import frozen, missing
from install.locks import lock_file, pins

LOCK = (
    "# head\nnumpy==2.4.6 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\ntorch==2.15.0 \\\n    --hash=sha256:cc\n"
)


def test_what_the_target_has_in_the_same_version_is_left_out_with_its_digests() -> None:
    kept, left_out = missing(LOCK, {"numpy": "2.4.6", "torch": "2.8.0"})
    assert kept == "# head\ntorch==2.15.0 \\\n    --hash=sha256:cc\n"
    assert left_out == ["numpy==2.4.6"]


def test_a_target_that_has_nothing_gets_everything() -> None:
    assert missing(LOCK, {}) == (LOCK, [])


def test_a_target_that_has_everything_gets_no_requirement() -> None:
    lock = lock_file("3.12", "load").read_text("utf-8")
    kept, left_out = missing(lock, pins(lock))
    assert pins(kept) == {} and len(left_out) == len(pins(lock))


def test_a_freeze_is_read_by_canonical_name_and_public_version() -> None:
    text = "Jinja2==3.1.6\ntyping_extensions==4.16.0\ntorch==2.15.0+cu132\nown @ file:///home/me/own\n-e /home/me/x\n"
    assert frozen(text) == {"jinja2": "3.1.6", "typing-extensions": "4.16.0", "torch": "2.15.0"}


@pytest.fixture
def small_bundle(tmp_path: Path) -> tuple[Path, dict[str, object]]:
    (tmp_path / "wheels").mkdir()
    wheel = tmp_path / "wheels" / "a.whl"
    wheel.write_bytes(b"a wheel")
    digest = hashlib.sha256(b"a wheel").hexdigest()
    return tmp_path, {"schema": 1, "python": "3.12", "files": {"wheels/a.whl": digest}}


def test_a_bundle_whose_digests_hold_may_be_installed(small_bundle: tuple[Path, dict[str, object]]) -> None:
    assert offline.wrong(*small_bundle, (3, 12)) is None


def test_a_damaged_file_is_named(small_bundle: tuple[Path, dict[str, object]]) -> None:
    folder, manifest = small_bundle
    (folder / "wheels" / "a.whl").write_bytes(b"a whee1")
    assert "wheels/a.whl is damaged" in str(offline.wrong(folder, manifest, (3, 12)))


def test_a_missing_file_is_named(small_bundle: tuple[Path, dict[str, object]]) -> None:
    folder, manifest = small_bundle
    (folder / "wheels" / "a.whl").unlink()
    assert "wheels/a.whl is missing" in str(offline.wrong(folder, manifest, (3, 12)))


def test_another_python_is_told_which_one_the_bundle_is_for(small_bundle: tuple[Path, dict[str, object]]) -> None:
    assert "for Python 3.12, this is 3.11" in str(offline.wrong(*small_bundle, (3, 11)))


def test_a_newer_bundle_is_refused_by_number(small_bundle: tuple[Path, dict[str, object]]) -> None:
    folder, manifest = small_bundle
    assert "schema 2 is not 1" in str(offline.wrong(folder, {**manifest, "schema": 2}, (3, 12)))


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    assert offline.occupied(tmp_path) is None and offline.occupied(tmp_path / "new") is None
    (tmp_path / "mine").touch()
    assert "not an empty folder" in str(offline.occupied(tmp_path))
    assert "not an empty folder" in str(offline.occupied(tmp_path / "mine"))
