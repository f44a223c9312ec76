"""What the known servers do that give their input back after a time: sleep, affine, optimum and their like.

Copied beside each of them as 1/timed.py. Reads brim.parameters of config.pbtxt; writes the log of executions.
"""

from __future__ import annotations

import json
import time
from time import monotonic_ns
from typing import Any

from . import stub


class TimedModel:
    """Answers with what it was sent, service_ms after the batch began, however many items it has."""

    def initialize(self, args: dict[str, str]) -> None:
        self.parameters: dict[str, float] = json.loads(stub.start(args)["brim.parameters"])
        self._log = stub.ExecutionLog(args)

    def service_ms(self, items: int) -> float:
        """How long this batch takes; asked once for each."""
        return self.parameters["service_ms"]

    def wait(self, start_ns: int, items: int) -> None:
        """Until the batch is done; from its start on, so that reading and writing tensors is part of its time."""
        sleep_until(start_ns + round(self.service_ms(items) * 1e6))

    def execute(self, requests: list[Any]) -> list[Any]:
        start_ns = monotonic_ns()
        arrays = [stub.input_array(request) for request in requests]
        items = sum(map(len, arrays))
        responses = [stub.response(OUTPUT=array) for array in arrays]
        self.wait(start_ns, items)
        self._log.add(start_ns, monotonic_ns(), items)
        return responses

    def finalize(self) -> None:
        self._log.close()


def sleep_until(instant_ns: int) -> None:
    """Returns at once where the instant has passed."""
    time.sleep(max(0, instant_ns - monotonic_ns()) / 1e9)
