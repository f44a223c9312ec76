"""The known server `image`: takes images and at once gives the sum over channels of each one's first pixel.

What is measured is the way of large inputs; the sum shows that the right image arrived.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import Any

import numpy as np

from . import stub


def first_pixel_sums(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """FP32 whatever the images' dtype: neither eight bits nor FP16 hold every sum."""
    sums: np.ndarray[Any, Any] = images[:, :, 0, 0].astype(np.float32).sum(axis=1, keepdims=True)
    return sums


class TritonPythonModel:
    """Answers with one number per image."""

    def initialize(self, args: dict[str, str]) -> None:
        stub.start(args)
        self._log = stub.ExecutionLog(args)

    def execute(self, requests: list[Any]) -> list[Any]:
        start_ns = monotonic_ns()
        arrays = [stub.input_array(request) for request in requests]
        responses = [stub.response(OUTPUT=first_pixel_sums(array)) for array in arrays]
        self._log.add(start_ns, monotonic_ns(), sum(map(len, arrays)))
        return responses

    def finalize(self) -> None:
        self._log.close()
