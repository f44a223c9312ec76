"""The known server `exponential`: one item at a time, service times exponential with mean service_ms.

The k-th service of an instance depends on `seed`, its number and k alone. What is drawn shorter than reading and
writing the tensors (some 0.1 ms) takes that long.
"""

from __future__ import annotations

import numpy as np

from . import stub, timed


def stream(seed: float, instance: int) -> np.random.Generator:
    """The instance's own random numbers."""
    return np.random.default_rng([int(seed), instance])


class TritonPythonModel(timed.TimedModel):
    """Answers with what it was sent after a random time."""

    def initialize(self, args: dict[str, str]) -> None:
        super().initialize(args)
        self._random = stream(self.parameters["seed"], stub.instance_number(args))

    def service_ms(self, items: int) -> float:
        return self._random.exponential(super().service_ms(items))
