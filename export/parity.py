"""How far an exported model is from its source: both as engines, on the same seeded images. Pure but for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brim.errors import UsageError
from brim.records import Parity
from engines.engine import Engine

BATCHES = (1, 2, 5)
TOP1_INPUTS = 64
#: Images that run at once in the top-1 comparison: few, so that activations stay in the cache.
CHUNK = 4
#: Below this spread over inputs, relative to the largest output, outputs cannot show a wrong row.
LEAST_SPREAD = 1e-3


def answers(engine: Engine, sizes: Sequence[int], *, seed: int) -> list[NDArray[Any]]:
    """What `engine` says to the first images of a seeded sequence, once for every batch size."""
    port = engine.inputs[0]
    images = seeded_images((max(sizes), *port.shape[1:]), seed).astype(port.dtype, copy=False)
    return [engine.run({port.name: images[:size]})[engine.outputs[0].name] for size in sizes]


def many(engine: Engine, images: int, *, seed: int) -> NDArray[Any]:
    """What `engine` says to `images` images of the same sequence, in chunks that fit any memory."""
    port = engine.inputs[0]
    given = seeded_images((images, *port.shape[1:]), seed).astype(port.dtype, copy=False)
    chunks = [given[start : start + CHUNK] for start in range(0, images, CHUNK)]
    return np.concatenate([engine.run({port.name: chunk})[engine.outputs[0].name] for chunk in chunks])


def seeded_images(shape: tuple[int, ...], seed: int) -> NDArray[Any]:
    """Uniform in [0, 1), as the load's random payload is."""
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def compare(wanted: NDArray[Any], found: NDArray[Any], batches: Sequence[NDArray[Any]], *, bound: float) -> Parity:
    """The exported model's answers, to all images and to batches of the first ones, against the reference's."""
    scale = float(np.max(np.abs(wanted)))
    errors = [largest_error(wanted, found), *(largest_error(wanted[: len(b)], b) for b in batches)]
    return Parity(
        max_relative_error=float(np.max(errors)) / scale
        if scale
        else float("nan"),  # a NaN stays one, and no bound holds for it
        bound=bound,
        top1_equal=int(np.sum(top1(wanted) == top1(found))),
        top1_inputs=len(wanted),
        batches=tuple(len(batch) for batch in batches),
    )


def largest_error(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """max |found - wanted|; infinite where the shapes differ, NaN where a value is none."""
    if wanted.shape != found.shape:
        return float("inf")
    return float(np.max(np.abs(found.astype(np.float64) - wanted.astype(np.float64))))


def top1(answers: NDArray[Any]) -> NDArray[Any]:
    """The top class of every image."""
    return np.asarray(np.argmax(answers.reshape(len(answers), -1), axis=1))


def spread(answers: NDArray[Any]) -> float:
    """Mean standard deviation over inputs, relative to the largest output: 0 = all the same."""
    largest = float(np.max(np.abs(answers)))
    return float(np.mean(np.std(answers.astype(np.float64), axis=0))) / largest if largest > 0 else 0.0


def require(parity: Parity, name: str) -> None:
    """Refuse an export that does not compute what its model does."""
    if not parity.held:
        raise UsageError(
            f"{name}: the exported model differs from torch: error {parity.max_relative_error:.2e} "
            f"(bound {parity.bound:.0e}), top-1 equal on {parity.top1_equal} of {parity.top1_inputs}; "
            "nothing was written: try another opset, or report the network"
        )


def require_spread(answers: NDArray[Any], name: str) -> None:
    """Refuse weights whose outputs could not show a wrong row or value."""
    found = spread(answers)
    if not found >= LEAST_SPREAD:
        raise UsageError(
            f"{name}: outputs hardly depend on the image (spread {found:.1e}, needed {LEAST_SPREAD:.0e}); "
            "try another seed, or give weights with --weights"
        )
