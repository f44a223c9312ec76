"""The known server `sleep`: gives its input back after service_ms, however many items the batch has."""

from __future__ import annotations

from . import timed


class TritonPythonModel(timed.TimedModel):
    """As every timed model does."""
