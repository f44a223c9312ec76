"""The known server `stall`: does what `sleep` does, but each instance freezes once, for stall_ms.

The frozen batch is the first that begins at_s or later after the instance's first one (warm-up left aside); it takes
stall_ms + service_ms. So there is always exactly one, also where nothing was sent at the instant itself. The log of
executions has it as the one long line; the server's log says it in words.
"""

from __future__ import annotations

import json
from time import monotonic_ns

import triton_python_backend_utils as pb_utils

from . import timed


class Freeze:
    """Which batch of an instance freezes, by when each begins."""

    def __init__(self, *, warmups: int, at_s: float) -> None:
        self._warmups = warmups
        self._after_ns = round(at_s * 1e9)
        self._from_ns: int | None = None
        self._over = False

    def begins(self, now_ns: int) -> bool:
        """Whether it is the batch that begins now; to be asked once for each batch."""
        if self._warmups > 0:
            self._warmups -= 1
            return False
        if self._from_ns is None:
            self._from_ns = now_ns + self._after_ns
        if self._over or now_ns < self._from_ns:
            return False
        self._over = True
        return True


class TritonPythonModel(timed.TimedModel):
    """Answers with what it was sent, service_ms after the batch began, once stall_ms later."""

    def initialize(self, args: dict[str, str]) -> None:
        super().initialize(args)
        self._name = args["model_instance_name"]
        warmups = json.loads(args["model_config"]).get("model_warmup", [])
        self._freeze = Freeze(warmups=len(warmups), at_s=self.parameters["at_s"])

    def service_ms(self, items: int) -> float:
        if not self._freeze.begins(monotonic_ns()):
            return super().service_ms(items)
        stall_ms = self.parameters["stall_ms"]
        pb_utils.Logger.log_info(f"Brim: {self._name} freezes for {stall_ms:g} ms, at {monotonic_ns()} ns")
        return stall_ms + super().service_ms(items)
