"""The closed loop from one request in flight to twice what fills the server, against what theory says of it.

One instance by the formulas of the alternating batches, two by the simulator; the service times are those that the
server logged, the overheads were measured by loads that are not judged. Beside it, what the log itself says of each
rung: whether the figures are right does not depend on whether the theory is.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.served import Served
from benchmarks.truth.journal import Book, Line, told, within
from benchmarks.truth.loads import FROZEN_S, Frozen, closed, freeze, fresh, in_numbers, log_of
from experiments.calibrate.plan import variant
from judging.slo_model import Model
from judging.truth import latency_ms, rate
from queueing.batcher import closed_loop
from queueing.closed_forms import Rung, closed_loop_rung

TOLERANCE = 0.02
#: Of what the server logged of the same stretch: nothing is modelled there.
OF_LOG = 0.01
#: Two instances in closed loop fall into step with each other or out of it by how much batches scatter.
SCATTER = (0.0, 0.5, 2.0)
IN_FLIGHT = (1, 2, 4, 8, 16, 32)
LOAD_S = 10.0
REQUESTS = 200_000  # simulated
WARM = 0.2  # of them


def run(book: Book) -> None:
    """One and two instances."""
    for instances in (1, 2):
        sleep = variant("sleep", {"service_ms": 20.0}, max_batch=8, instances=instances)
        with fresh(sleep, book.folder / f"k{instances}") as on:
            frozen = freeze(on, seconds=book.scaled(FROZEN_S))
            book.add(told(f"sleep, k={instances}: frozen beforehand", frozen.words))
            for in_flight in IN_FLIGHT:
                book.add(*measure(on, frozen, in_flight, book.scaled(LOAD_S)))


def measure(on: Served, frozen: Frozen, in_flight: int, seconds: float) -> list[Line]:
    """One rung."""
    load = closed(on, in_flight, seconds=seconds)
    log = log_of(on)
    items_per_s, latency_s = in_numbers(log, load)
    logged = rate(log, load.settled_ns, load.end_ns)
    logged_ms = latency_ms(log, load.settled_ns, load.end_ns, requests=in_flight, items_per_request=1) or 0.0
    model = frozen.model(log, load)
    rung = expected(model, in_flight)
    what = f"sleep, k={frozen.batcher.instances}, {in_flight} in flight"
    lines = [
        within(f"{what}: throughput, log", items_per_s, logged, OF_LOG, "/s"),
        within(f"{what}: latency, log", 1e3 * latency_s, logged_ms, OF_LOG, " ms"),
        within(f"{what}: throughput, theory", items_per_s, rung.items_per_s, TOLERANCE, "/s"),
        within(f"{what}: latency, theory", 1e3 * latency_s, 1e3 * rung.latency_s, TOLERANCE, " ms"),
    ]
    if model.batcher.instances > 1:
        rates = ", ".join(f"{simulated(scattered(model, by), in_flight).items_per_s:.1f}" for by in SCATTER)
        lines.append(told(f"{what}: theory with no, half and twice the scatter of batches", f"{rates}/s"))
    return lines


def scattered(model: Model, by: float) -> Model:
    """The same server, whose batches scatter `by` times as much."""
    return replace(model, noise=1.0 + by * (model.noise - 1.0))


def expected(model: Model, in_flight: int) -> Rung:
    """What so many clients without think time see."""
    if model.batcher.instances > 1:
        return simulated(model, in_flight)
    overheads, service_s = model.overheads, model.service.seconds[0]

    def held_s(items: float) -> float:
        own_s = np.interp(items, np.arange(1, service_s.size + 1), service_s)
        return float(own_s) + (overheads.occupancy_ms + overheads.occupancy_per_item_ms * items) / 1e3

    return closed_loop_rung(in_flight, model.batcher.max_batch, held_s, overheads.additive_ms / 1e3)


def simulated(model: Model, in_flight: int) -> Rung:
    """The same by the simulator, behind its beginning."""
    done = closed_loop(
        in_flight, REQUESTS, model.batcher, model.service, model.overheads, noise=model.noise
    )  # fmt: skip
    first = int(WARM * REQUESTS)
    latency_s = float((done.done_s - done.arrival_s)[first:].mean())
    return Rung(items_per_s=in_flight / latency_s, latency_s=latency_s)
