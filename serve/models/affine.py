"""The known server `affine`: a batch of b items takes tau0_ms + alpha_ms * b, as on a device that fills slowly."""

from __future__ import annotations

from . import timed


def tau_ms(items: int, *, tau0_ms: float, alpha_ms: float) -> float:
    """Throughput b / tau(b) rises with every item, towards 1 / alpha."""
    return tau0_ms + alpha_ms * items


class TritonPythonModel(timed.TimedModel):
    """Answers with what it was sent, tau_ms after the batch began."""

    def service_ms(self, items: int) -> float:
        return tau_ms(items, tau0_ms=self.parameters["tau0_ms"], alpha_ms=self.parameters["alpha_ms"])
