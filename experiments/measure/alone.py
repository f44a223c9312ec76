"""The engine alone beside the served model: its rate at the served batch, and its answers to sampled requests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brim import layout
from brim.machine import nvidia_driver_answers
from brim.records import Target, Variant
from loadtest import prepared, sampling
from loadtest.ceiling import run_engine
from loadtest.driver import Sample

#: How long the engine runs alone in each round, next to the figure that it is compared with.
CEILING_SECONDS = 4.0
ENGINE_LIMIT_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The responses that one load kept, and the load's folder."""

    folder: Path
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """How far sampled answers were from the engine's own: max |difference| / max |engine's output|."""

    compared: int
    max_relative_error: float


def ceiling(variant: Variant, model: Path, batch: int, folder: Path) -> float:
    """Items per second of the same engine with the same threads at `batch`, from the median batch; server idle.

    As many engines as the variant has instances run at the same time, and their rates are added.
    """
    spec = {
        **_engine(variant, model), "job": "ceiling", "batch": batch, "seconds": CEILING_SECONDS, "min_batches": 10,
        "inputs": {t.name: list(t.shape) for t in variant.model.inputs},
    }  # fmt: skip

    def one(instance: int) -> float:
        answer = run_engine(spec, folder / str(instance), python=layout.stub_python(), limit_s=ENGINE_LIMIT_S)
        return batch / float(answer["batch_s"]["median"])

    with ThreadPoolExecutor(variant.config.instances) as pool:
        return sum(pool.map(one, range(variant.config.instances)))


def compare_values(
    target: Target, variant: Variant, model: Path, payload: Path, kept: Sequence[Kept], folder: Path
) -> Values:
    """Answers kept under load against the engine's answers to the same inputs, sample by sample."""
    pool = prepared.load(payload)
    served = [one for each in kept for one in sampling.read_outputs(target, each.samples, each.folder)]
    used = sorted({index for index, _ in served})
    answer = run_engine(
        {**_engine(variant, model), "job": "outputs", "outputs_folder": str(folder / "outputs"),
         "samples": [_files(pool, payload, index) for index in used]},
        folder, python=layout.stub_python(), limit_s=ENGINE_LIMIT_S,
    )  # fmt: skip
    expected = dict(zip(used, answer["samples"], strict=True))
    errors = [_relative_error(outputs, expected[index]) for index, outputs in served]
    return Values(compared=len(errors), max_relative_error=max(errors, default=math.inf))


def _engine(variant: Variant, model: Path) -> dict[str, object]:
    config = variant.config
    return {
        "engine": config.engine,
        "model": str(model),
        "threads": config.threads,
        "device": "cuda" if nvidia_driver_answers() else "cpu",  # as serve decides for the served engine
        "options": dict(config.engine_options),
    }


def _files(pool: prepared.Payload, payload: Path, index: int) -> dict[str, str]:
    return {t.name: str(payload / f) for t, f in zip(pool.inputs, pool.members[index].inputs, strict=True)}


def _relative_error(served: Mapping[str, np.ndarray], expected: Mapping[str, str]) -> float:
    worst = 0.0
    for name, file in expected.items():
        want = np.load(file, allow_pickle=False).astype(np.float64)
        got = served.get(name)
        if got is None or got.shape != want.shape:
            return math.inf
        scale = float(np.abs(want).max()) or 1.0
        error = float(np.abs(got.astype(np.float64) - want).max()) / scale
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst
