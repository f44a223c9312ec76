"""The known server `reject`: does what `sleep` does, behind a queue that holds at most `queue` requests.

The queue is Triton's own: the parameter becomes max_queue_size of config.pbtxt, and what comes when it is full never
gets here.
"""

from __future__ import annotations

from . import timed


class TritonPythonModel(timed.TimedModel):
    """As every timed model does."""
