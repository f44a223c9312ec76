"""Open-loop loads that the simulator answers, as a sender and Triton would tell of them: an oracle without a server."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from brim.records import Status
from experiments.overload.run import Sent
from judging.overload import QUEUE_FULL, QUEUE_TIMEOUT
from judging.rows import ROW_DTYPE, Rows
from judging.slo_observed import Observed
from queueing.arrivals import Offsets
from queueing.batcher import Batcher, Service, open_loop

START_NS = 7_000_000_000


def answered(
    offsets_ns: Offsets, batcher: Batcher, service_s: float, *, load: int = 0, unsent: Sequence[int] = ()
) -> Sent:
    """What becomes of these arrivals at that server; those with a number in `unsent` never leave."""
    sent_ns = np.delete(offsets_ns, list(unsent))
    seen = open_loop(sent_ns / 1e9, batcher, Service.of(batcher, lambda _: service_s))
    rows = np.zeros(len(sent_ns), dtype=ROW_DTYPE).view(Rows)
    rows["intended_ns"] = rows["sent_ns"] = START_NS + sent_ns
    rows["done_ns"] = START_NS + np.round(seen.done_s * 1e9).astype(np.int64)
    rows["items"], rows["status"] = 1, seen.outcome
    refused = seen.outcome == Status.REJECTED
    at_once = int((refused & (seen.done_s == seen.arrival_s)).sum())
    said = {f"HTTP 503: {QUEUE_FULL}": at_once, f"HTTP 503: {QUEUE_TIMEOUT}": int(refused.sum()) - at_once}
    observed = Observed(
        rows=rows[np.argsort(rows["done_ns"], kind="stable")],
        offsets_ns=offsets_ns,
        start_ns=START_NS,
        end_ns=START_NS + int(offsets_ns[-1]),
        load=load,
    )
    return Sent(seen=observed, errors={text: n for text, n in said.items() if n})
