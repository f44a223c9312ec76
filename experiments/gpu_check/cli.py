"""`brim gpu-check`: figures of a GPU host that has only torch, timm, click and rich."""

from __future__ import annotations

from pathlib import Path

import click

from brim.cli import verb
from brim.say import Say
from experiments.gpu_check import tables
from experiments.gpu_check.part import run_part

HELP = """Figures of a GPU host that has only torch and timm: ceilings, ResNet-50 and EfficientNet-B3, the layer pair.

Runs in parts: each call goes on where the last one stopped, and says what is left."""


@verb(HELP)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=8.0, show_default=True,
              help="Length of this part; a cell that would not end in it waits for the next.")  # fmt: skip
def command(say: Say, out: Path, minutes: float) -> None:
    result = run_part(say, out, minutes=minutes)
    say.answer(tables.summary(result))
    say.document(result)
