"""`brim bundle`: one archive for a host without internet."""

from __future__ import annotations

from pathlib import Path

import click

from brim.cli import verb
from brim.say import Say
from install import bundle as packing
from install.layers import TARGETS
from install.locks import MINORS


@verb("Pack one archive with all that a host without internet needs to run Brim.")
@click.option(
    "--have",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="`pip freeze` of the target: what it has in the same version is left out.",
)
@click.option(
    "--python", "python", type=click.Choice(MINORS), default="3.12", show_default=True, help="The target's Python."
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "gpu"]),
    default="cpu",
    show_default=True,
    help="The target's device; gpu brings onnxruntime-gpu.",
)
@click.option(
    "--for",
    "target",
    type=click.Choice(sorted(TARGETS)),
    default="offline",
    show_default=True,
    help="A make target: pack only what it needs. `offline` is all but the developer's tools.",
)
def bundle(say: Say, out: Path, have: Path | None, python: str, device: str, target: str) -> None:
    say.progress(f"fetching wheels for Python {python}, {device}")
    archive, notes = packing.bundle(out, have, python, device=device, target=target)
    for note in notes:
        say.warn(note)
    say.answer(f"{archive} ({archive.stat().st_size / 1e6:.0f} MB): unpack it there, then sh install.sh FOLDER")
    say.document({"bundle": str(archive), "notes": notes})


command = bundle
