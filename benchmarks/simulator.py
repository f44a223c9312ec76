"""How fast the simulator is, and what it takes of memory: `python -m benchmarks.simulator [--out OUT]`.

Three servers at 90% of their capacity, on one core. Writes OUT/bench/<utc>-simulator.json. Exit code 1 if a bound does
not hold.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.served import keep, outcome
from queueing.arrivals import poisson
from queueing.batcher import Batcher, Service, open_loop

LEAST_PER_S = 1_000_000  # requests
#: A request, besides the answer (17 for its start, end and outcome, and 24 for each batch): whether arrivals are sorted
#: takes one for a moment.
MOST_BYTES = 2.0
LOAD, SERVICE_S, SHARED = 0.9, 0.01, 1.7  # two busy instances take 1.7 times as long as one
ROUNDS, REQUESTS = 5, (1_000_000, 5_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One server, simulated at several lengths."""

    server: str
    requests_per_s: tuple[float, ...]  # of CPU time; the median of the rounds, by length
    bytes_per_request: float  # by which the longest run raised the peak of the process
    bytes_of_answer: float  # so much of it is what was asked for

    @property
    def held(self) -> bool:
        besides = self.bytes_per_request - self.bytes_of_answer
        return min(self.requests_per_s) >= LEAST_PER_S and besides <= MOST_BYTES


def servers() -> dict[str, tuple[Batcher, Service]]:
    """What is simulated: a name, and 10 ms a batch."""
    one, two = Batcher(1), Batcher(8, 2)
    contended = SERVICE_S * np.array([[1.0], [SHARED]]) * np.ones((1, two.max_batch))
    return {
        "B=1 k=1": (one, Service.of(one, lambda _: SERVICE_S)),
        "B=8 k=2": (two, Service.of(two, lambda _: SERVICE_S)),
        "B=8 k=2, contended": (two, Service(contended)),
    }


def measured(name: str, batcher: Batcher, service: Service) -> Found:
    """Speed and memory at each length; the first, short run makes the machine code."""
    capacity = batcher.instances * batcher.max_batch / service.seconds[-1, -1]
    simulated(1000, LOAD * capacity, batcher, service)
    rounds = {n: [simulated(n, LOAD * capacity, batcher, service) for _ in range(ROUNDS)] for n in REQUESTS}
    speeds = tuple(statistics.median(speed for speed, _, _ in at_length) for at_length in rounds.values())
    _, peaks, answers = zip(*rounds[REQUESTS[-1]], strict=True)
    return Found(
        server=name,
        requests_per_s=speeds,
        bytes_per_request=statistics.median(peaks) / REQUESTS[-1],
        bytes_of_answer=statistics.median(answers) / REQUESTS[-1],
    )


def simulated(requests: int, rate: float, batcher: Batcher, service: Service) -> tuple[float, float, float]:
    """Requests a CPU second, bytes by which the process peaked above what it held, and bytes of the answer."""
    arrivals_s = poisson(rate, requests / rate, seed=1) / 1e9
    held = reset_peak()
    before = time.process_time()
    run = open_loop(arrivals_s, batcher, service)
    taken = time.process_time() - before
    peak = memory("VmHWM") - held
    answer = (run.start_s, run.done_s, run.outcome)
    batches = (run.batch_start_s, run.batch_end_s, run.batch_items, run.batch_instance)
    return run.done_s.size / taken, peak, sum(array.nbytes for array in (*answer, *batches))


def reset_peak() -> int:
    """Let the kernel forget the highest memory of this process; gives what it holds now."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(field: str) -> int:
    """Bytes that /proc/self/status tells."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def table(found: Sequence[Found]) -> str:
    head = f"{'server':20} {'requests/s at':>23} {'bytes/request':>15} {'of the answer':>15}"
    lengths = f"{'':20} {' '.join(f'{n / 1e6:.0f} million'.rjust(11) for n in REQUESTS)}"
    rows = [
        f"{one.server:20} {' '.join(f'{speed:11,.0f}' for speed in one.requests_per_s)}"
        f" {one.bytes_per_request:15.1f} {one.bytes_of_answer:15.1f}"
        for one in found
    ]
    return "\n".join([head, lengths, *rows])


def main(arguments: Sequence[str]) -> int:
    """Every server in turn."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulator", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the JSON goes")
    told = parser.parse_args(arguments)
    found = [measured(name, batcher, service) for name, (batcher, service) in servers().items()]
    held = all(one.held for one in found)
    file = keep(told.out, "simulator", found)
    bounds = f"at least {LEAST_PER_S:,} requests/s, at most {MOST_BYTES:g} byte a request besides the answer"
    print(f"{table(found)}\n{'held' if held else 'MISSED'}: {bounds}; kept in {file}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(outcome(main))
