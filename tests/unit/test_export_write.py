"""A model's folder is whole, or what it was before: under errors, signals, full disks and leftovers of a kill."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from brim import disk, layout
from brim.errors import Interrupted, NoResource
from brim.records import ModelCard, Tensor
from export import write


def card(content: bytes, *, recipe: str = "r") -> ModelCard:
    import hashlib

    port = Tensor(name="input", dtype="FP32", shape=(1,))
    return ModelCard(
        name="net", source="timm/net", inputs=(port,), outputs=(port,), precision="fp32", weights="seeded:0",
        artifacts={write.ARTIFACT: hashlib.sha256(content).hexdigest()}, recipe=recipe,
    )  # fmt: skip


def put(out: Path, content: bytes, *, recipe: str = "r") -> Path:
    with write.new_folder(out, "net") as folder:
        (folder / write.ARTIFACT).write_bytes(content)
        disk.save(folder / "card.json", card(content, recipe=recipe))
    return layout.model_folder(out, "net")


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "models").iterdir())


def test_a_folder_takes_its_place_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        place = put(tmp_path, content)
        assert (place / write.ARTIFACT).read_bytes() == content
        assert names(tmp_path) == ["net"]


@pytest.mark.parametrize("stop", [Interrupted(2), Interrupted(15), KeyboardInterrupt(), RuntimeError("in the middle")])
def test_whatever_stops_the_building_leaves_the_previous_model_or_none(tmp_path: Path, stop: BaseException) -> None:
    def interrupted() -> None:
        with write.new_folder(tmp_path, "net") as folder:
            (folder / write.ARTIFACT).write_bytes(b"half")
            raise stop

    with pytest.raises(type(stop)):
        interrupted()
    assert names(tmp_path) == []
    place = put(tmp_path, b"previous")
    with pytest.raises(type(stop)):
        interrupted()
    assert (place / write.ARTIFACT).read_bytes() == b"previous"
    assert names(tmp_path) == ["net"]


@pytest.mark.parametrize("stop", [Interrupted(2), OSError(28, "No space left on device")])
def test_a_stop_between_the_two_renames_brings_the_previous_model_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    place = put(tmp_path, b"previous")
    rename = os.rename

    def stopped_once_the_old_is_away(source: Path, target: Path) -> None:
        if target == place and ".new." in source.name:
            raise stop
        rename(source, target)

    monkeypatch.setattr(os, "rename", stopped_once_the_old_is_away)
    with pytest.raises((Interrupted, NoResource)):
        put(tmp_path, b"next")
    assert (place / write.ARTIFACT).read_bytes() == b"previous"
    assert names(tmp_path) == ["net"]


def test_what_a_killed_export_left_is_cleared_away_and_other_models_are_not(tmp_path: Path) -> None:
    for left in (".net.new.abc", ".net.old.abc", ".net2.new.abc", "net2"):
        (tmp_path / "models" / left).mkdir(parents=True)
    put(tmp_path, b"content")
    assert names(tmp_path) == [".net2.new.abc", "net", "net2"]


def test_an_out_that_is_a_file_or_holds_one_in_the_models_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NoResource, match="file"):
        put(tmp_path / "file", b"content")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "net").write_text("mine")
    with pytest.raises(NoResource, match="net is not a folder"):
        put(tmp_path, b"content")
    assert (tmp_path / "models" / "net").read_text() == "mine"


def test_unchanged_means_the_same_recipe_and_a_whole_artifact(tmp_path: Path) -> None:
    assert write.unchanged(tmp_path, "net", "r") is None
    place = put(tmp_path, b"content")
    assert write.unchanged(tmp_path, "net", "r") == card(b"content")
    assert write.unchanged(tmp_path, "net", "another") is None
    (place / write.ARTIFACT).write_bytes(b"contemt")
    assert write.unchanged(tmp_path, "net", "r") is None
    (place / write.ARTIFACT).unlink()
    assert write.unchanged(tmp_path, "net", "r") is None


@pytest.mark.parametrize("content", ["", "{", '{"schema": 999}', '{"schema": 1, "nam": "net"}', "[]"])
def test_a_card_that_cannot_be_read_is_written_anew(tmp_path: Path, content: str) -> None:
    place = put(tmp_path, b"content")
    (place / "card.json").write_text(content)
    assert write.unchanged(tmp_path, "net", "r") is None


def test_two_exports_do_not_write_at_once(tmp_path: Path) -> None:
    second = write.sole_writer(tmp_path)
    with write.sole_writer(tmp_path), pytest.raises(NoResource, match="another export"):
        second.__enter__()
    with write.sole_writer(tmp_path):
        pass
