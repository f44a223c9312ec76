"""A model's folder under out/models, written whole: built beside its place, then swapped in by a rename.

An interruption leaves the previous folder, or none; never a half. Readers skip names that start with a dot.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from brim import disk, layout
from brim.errors import NoResource, NotReady, UsageError
from brim.records import ModelCard

ARTIFACT = "model.onnx"


@contextlib.contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Hold the right to write models under `out`; NoResource if another export has it."""
    models = layout.model_folder(out, "any").parent
    with disk.lock(models / ".lock", f"another export writes to {models}; wait until it is done"):
        yield


@contextlib.contextmanager
def new_folder(out: Path, model: str) -> Iterator[Path]:
    """An empty folder to build in; it takes the model's place at the end of the block, or goes on an error."""
    place = layout.model_folder(out, model)
    disk.make_folder(place.parent)
    if place.exists() and not place.is_dir():
        raise NoResource(f"{place} is not a folder; remove it or choose another place with --out")
    for left in place.parent.glob(f".{model}.*"):  # of an export that was killed
        shutil.rmtree(left, ignore_errors=True)
    with disk.told(place.parent):
        building = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{model}.new."))
    try:
        yield building
        building.chmod(0o755)
        _swap_in(building, place)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _swap_in(building: Path, place: Path) -> None:
    """Put `building` where `place` is; whatever stood there comes back if that does not succeed."""
    former = building.with_name(building.name.replace(".new.", ".old."))
    with disk.told(place):
        try:
            if place.exists():
                os.rename(place, former)
            os.rename(building, place)
        except BaseException:
            if former.exists() and not place.exists():
                os.rename(former, place)
            raise
    shutil.rmtree(former, ignore_errors=True)


def unchanged(out: Path, model: str, recipe: str) -> ModelCard | None:
    """The card that stands there, if it was made by this very recipe and its artifact is whole."""
    card = existing(out, model)
    if card is None or card.recipe != recipe:
        return None
    artifact = layout.model_folder(out, model) / ARTIFACT
    whole = artifact.is_file() and disk.sha256(artifact) == card.artifacts.get(ARTIFACT)
    return card if whole else None


def existing(out: Path, model: str) -> ModelCard | None:
    """The card that stands there, or None if there is none that this version can read."""
    try:
        return disk.load(ModelCard, layout.card_file(out, model))
    except (NotReady, UsageError):
        return None
