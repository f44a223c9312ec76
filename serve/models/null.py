"""The known server `null`: gives its input back at once, so that what is measured is all but the model."""

from __future__ import annotations

from time import monotonic_ns
from typing import Any

from . import stub


class TritonPythonModel:
    """Answers with what it was sent."""

    def initialize(self, args: dict[str, str]) -> None:
        stub.start(args)
        self._log = stub.ExecutionLog(args)

    def execute(self, requests: list[Any]) -> list[Any]:
        start_ns = monotonic_ns()
        arrays = [stub.input_array(request) for request in requests]
        responses = [stub.response(OUTPUT=array) for array in arrays]
        self._log.add(start_ns, monotonic_ns(), sum(map(len, arrays)))
        return responses

    def finalize(self) -> None:
        self._log.close()
