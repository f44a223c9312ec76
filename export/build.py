"""One model from its recipe to its folder: weights, ONNX, parity, card. The shell round what knows how.

Writes out/models/<model>/{model.onnx, card.json}. Imports torch; `brim export --help` never gets here.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from brim import disk
from brim.records import PARITY_BOUNDS, ModelCard, Parity
from brim.say import Say
from engines.engine import open_engine
from engines.torch_module import TorchModuleEngine
from export import parity, write
from export.recipes import DECIDING_PACKAGES, Recipe, Weights
from export.to_onnx import quiet, write_onnx
from export.weights import Create, load

NOTED_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "safetensors", *DECIDING_PACKAGES)
PRECISION = "fp32"


class Phases:
    """Seconds by phase, in the order in which they came."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())


def build(
    recipe: Recipe, weights: Weights, *, digest: str, out: Path, say: Say, create: Create | None = None
) -> tuple[ModelCard, Phases]:
    """Export one model and put its folder in place; the card is in force only if parity holds."""
    phase = Phases()
    with write.new_folder(out, recipe.name) as folder:
        with phase("weights"), quiet(say):
            module, label = load(recipe, weights, create)
        path = folder / write.ARTIFACT
        with phase("onnx"):
            exported = write_onnx(module, recipe, path, say)
        with phase("parity"):
            held = measure_parity(module, path, recipe, check_spread=weights.kind == "seeded")
        card = ModelCard(
            name=recipe.name,
            source=recipe.source,
            inputs=exported.inputs,
            outputs=exported.outputs,
            precision=PRECISION,
            weights=label,
            artifacts={write.ARTIFACT: disk.sha256(path)},
            recipe=digest,
            parity=held,
            software=software(),
        )
        disk.save(folder / "card.json", card)
    return card, phase


def measure_parity(module: Any, path: Path, recipe: Recipe, *, check_spread: bool) -> Parity:
    """Both engines on the same images; raises unless they agree within the precision's bound."""
    threads = len(os.sched_getaffinity(0))
    engine = open_engine("onnxruntime", path, threads=threads)
    reference = TorchModuleEngine(module, inputs=engine.inputs, outputs=engine.outputs, threads=threads)
    wanted = parity.many(reference, parity.TOP1_INPUTS, seed=recipe.seed)
    if check_spread:
        parity.require_spread(wanted, recipe.name)
    found = parity.compare(
        wanted,
        parity.many(engine, parity.TOP1_INPUTS, seed=recipe.seed),
        parity.answers(engine, parity.BATCHES, seed=recipe.seed),
        bound=PARITY_BOUNDS[PRECISION],
    )
    engine.close()
    parity.require(found, recipe.name)
    return found


def software() -> dict[str, str]:
    """Versions of what took part and is installed."""
    found: dict[str, str] = {}
    for name in NOTED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
