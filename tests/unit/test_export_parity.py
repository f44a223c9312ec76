"""Parity by arithmetic: two engines whose difference is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from brim.errors import UsageError
from engines.engine import Port
from export import parity

Answer = Callable[[NDArray[Any]], NDArray[Any]]


class ArithmeticEngine:
    """An engine that applies one function to its input."""

    provider = "arithmetic"
    inputs = (Port(name="input", dtype=np.dtype("float32"), shape=(-1, 3, 2, 2)),)
    outputs = (Port(name="output", dtype=np.dtype("float32"), shape=(-1, 3)),)

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.batches: list[int] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.batches.append(len(inputs["input"]))
        return {"output": self._answer(inputs["input"])}

    def close(self) -> None: ...


def mean(images: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(images.mean(axis=(2, 3)))


def compared(wrong: Answer) -> Any:
    wanted = parity.many(ArithmeticEngine(mean), 64, seed=1)
    engine = ArithmeticEngine(wrong)
    return parity.compare(
        wanted, parity.many(engine, 64, seed=1), parity.answers(engine, (1, 2, 5), seed=1), bound=1e-4
    )


def test_the_same_function_has_no_error_and_the_same_classes() -> None:
    found = compared(mean)
    assert (found.max_relative_error, found.top1_equal, found.top1_inputs) == (0.0, 64, 64)
    assert found.batches == (1, 2, 5)
    assert found.held
    parity.require(found, "net")


def test_the_error_is_the_largest_difference_over_the_largest_output() -> None:
    images = parity.seeded_images((64, 3, 2, 2), 1)
    largest = float(np.max(mean(images)))
    found = compared(lambda given: mean(given) + np.float32(0.01))
    assert found.max_relative_error == pytest.approx(0.01 / largest, rel=1e-4)
    assert found.top1_equal == 64  # all classes moved alike
    with pytest.raises(UsageError, match=r"net: .*bound 1e-04.*top-1 equal on 64 of 64"):
        parity.require(found, "net")


def test_an_error_in_a_single_batch_size_is_seen() -> None:
    found = compared(lambda given: mean(given) * (2 if len(given) == 5 else 1))
    wanted = mean(parity.seeded_images((64, 3, 2, 2), 1))
    assert found.max_relative_error == pytest.approx(float(np.max(wanted[:5]) / np.max(wanted)))
    assert not found.held


def test_another_top_class_is_counted_even_within_the_bound() -> None:
    def swapped(given: NDArray[Any]) -> NDArray[Any]:
        return mean(given)[:, ::-1]

    wanted = parity.top1(parity.many(ArithmeticEngine(mean), 64, seed=1))
    found = compared(swapped)
    assert found.top1_equal == int(np.sum(wanted == 1))  # only the middle class stays where it is
    assert not found.held


def test_values_that_are_no_numbers_and_shapes_that_differ_never_hold() -> None:
    broken = compared(lambda given: mean(given) * np.float32("nan"))
    assert math.isnan(broken.max_relative_error) and not broken.held
    assert parity.largest_error(np.ones((2, 3)), np.ones((2, 4))) == math.inf


def test_many_images_run_in_chunks_and_answer_as_one() -> None:
    engine = ArithmeticEngine(mean)
    answers = parity.many(engine, 10, seed=3)
    assert engine.batches == [4, 4, 2]
    assert np.array_equal(answers, mean(parity.seeded_images((10, 3, 2, 2), 3)))


def test_spread_is_zero_for_a_constant_and_known_for_a_pair() -> None:
    assert parity.spread(np.ones((4, 3))) == 0.0
    assert parity.spread(np.zeros((4, 3))) == 0.0
    assert parity.spread(np.array([[1.0, -1.0], [3.0, -3.0]])) == pytest.approx(1 / 3)
    parity.require_spread(np.array([[1.0], [3.0]]), "net")
    for hardly in (np.ones((4, 3)), np.full((4, 3), np.nan)):
        with pytest.raises(UsageError, match="hardly depend on the image"):
            parity.require_spread(hardly, "net")
