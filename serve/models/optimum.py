"""The known server `optimum`: its throughput peaks at the batch size `best`, and larger batches are worse."""

from __future__ import annotations

from . import timed


def tau_ms(items: int, *, tau0_ms: float, alpha_ms: float, best: float) -> float:
    """tau(b) = tau0 + alpha * b + gamma * b^2, gamma = tau0 / best^2.

    b / tau(b) peaks where tau(b) = b * tau'(b), that is where tau0 = gamma * b^2.
    """
    return tau0_ms + alpha_ms * items + tau0_ms * (items / best) ** 2


class TritonPythonModel(timed.TimedModel):
    """Answers with what it was sent, tau_ms after the batch began."""

    def service_ms(self, items: int) -> float:
        told = self.parameters
        return tau_ms(items, tau0_ms=told["tau0_ms"], alpha_ms=told["alpha_ms"], best=told["best"])
