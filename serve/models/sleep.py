"""The known server `sleep`: gives its input back after service_ms, however many items the batch has."""

from __future__ import annotations

import json
import time
from time import monotonic_ns
from typing import Any

from . import stub


class TritonPythonModel:
    """Answers with what it was sent, service_ms after the batch began."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(stub.start(args)["brim.parameters"])
        self._service_ns = round(parameters["service_ms"] * 1e6)
        self._log = stub.ExecutionLog(args)

    def execute(self, requests: list[Any]) -> list[Any]:
        start_ns = monotonic_ns()
        arrays = [stub.input_array(request) for request in requests]
        responses = [stub.response(OUTPUT=array) for array in arrays]
        # The deadline counts from the start, so that reading and writing tensors is part of the service time.
        time.sleep(max(0, start_ns + self._service_ns - monotonic_ns()) / 1e9)
        self._log.add(start_ns, monotonic_ns(), sum(map(len, arrays)))
        return responses

    def finalize(self) -> None:
        self._log.close()
