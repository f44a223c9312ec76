"""`brim export`: chooses recipes, leaves unchanged models alone, builds the others, says what came of each.

Reads models.toml, writes out/models/. torch is imported only when there is something to export.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from brim import layout
from brim.cli import Outcome, verb
from brim.errors import BrimError, worst_exit
from brim.records import ModelCard
from brim.say import Say
from export import recipes, write
from export.recipes import Recipe, Weights


@verb("Write models as ONNX with a free batch dimension, checked against torch. No NAME: the default models.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--models", "file", type=click.Path(path_type=Path), help="A models.toml of your own.")
@click.option("--weights", metavar="pretrained|FILE", help="timm's hub, or a .safetensors file; else seeded.")
def export(say: Say, out: Path, names: Sequence[str], file: Path | None, weights: str | None) -> None:
    chosen = recipes.choose(recipes.read_models(file or recipes.DEFAULT_FILE), names)
    given = recipes.read_weights(weights, len(chosen))
    versions, code = recipes.deciding_versions(), recipes.deciding_code()
    done: list[dict[str, object]] = []
    failed: list[BrimError] = []
    with write.sole_writer(out):
        for recipe in chosen:
            digest = recipes.recipe_digest(recipe, given, versions=versions, code=code)
            try:
                done.append(_export_one(recipe, given, digest, out, say))
            except BrimError as error:
                if len(chosen) == 1:
                    raise
                say.warn(str(error))
                failed.append(error)
    say.document({"models": done, "failed": [str(error) for error in failed]})
    if failed:
        code_out = worst_exit(error.exit_code for error in failed)
        raise Outcome(code_out, next(error.word for error in failed if error.exit_code == code_out))


def _export_one(recipe: Recipe, weights: Weights, digest: str, out: Path, say: Say) -> dict[str, object]:
    folder = layout.model_folder(out, recipe.name)
    card = write.unchanged(out, recipe.name, digest)
    if card is not None:
        say.answer(f"{recipe.name}: unchanged, {_told(card)}, in {folder}")
        return {"status": "unchanged", "folder": str(folder), "card": card}
    former = write.existing(out, recipe.name)
    if former is not None and former.weights != weights.label(recipe):
        say.progress(f"{recipe.name}: replaces the one with weights {former.weights}")
    say.progress(f"{recipe.name}: exporting {recipe.source} at {recipe.size} pixels")
    # Read when torch is loaded: its threads otherwise spin while they wait, which on shared cores costs fourfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from export.build import build  # torch: seconds

    card, phases = build(recipe, weights, digest=digest, out=out, say=say)
    say.progress(f"{recipe.name}: {phases}")
    say.answer(f"{recipe.name}: exported, {_told(card)}, to {folder}")
    return {"status": "exported", "folder": str(folder), "card": card, "seconds": phases.seconds}


def _told(card: ModelCard) -> str:
    parity = card.parity
    assert parity is not None  # every card that this stage writes for a recipe has one
    return (
        f"weights {card.weights}, error {parity.max_relative_error:.1e} of {parity.bound:.0e} allowed, "
        f"top-1 equal on {parity.top1_equal} of {parity.top1_inputs}"
    )


command = export
