"""Brim's senders beside perf_analyzer: `python -m benchmarks.rates [--out OUT] [--rounds N] [--only CELL…]`.

Everything on this machine, on servers that it starts and stops itself; README.md says what each cell is and why.
Writes OUT/bench/<utc>-rates.json. Exit code 1 if a bound does not hold.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks import stand_in
from benchmarks.busy_work import LOOPS, loops_for
from benchmarks.served import Served, keep, outcome, served
from benchmarks.side_by_side import Bound, Comparison, Figures, compare, document, in_turns, table
from benchmarks.traffic import ITEMS, PER_CPU, Traffic, sending_by, with_brim, with_perf_analyzer
from brim.records import Access, LoadPoint, ServingConfig, Variant
from experiments.measure.run import exclusive
from loadtest import payload, regions, target
from loadtest.control import control
from serve.configs import resolve
from serve.known import known_server

ROUNDS = 5
#: The ways of perf_analyzer to keep requests in flight; which is best depends on load and machine, so all are tried.
MODES: Mapping[str, tuple[str, ...]] = {
    "perf_analyzer --async, 1 thread": ("--async", "--max-threads", "1"),
    "perf_analyzer --async": ("--async",),
    "perf_analyzer --sync": ("--sync",),
}
NULL_IN_FLIGHT, IMAGE_IN_FLIGHT, BUSY_IN_FLIGHT = 64, 16, 32
BUSY_S = 200e-6


def null_http(on: Served, folder: Path, rounds: int) -> list[Comparison]:
    """16 floats there and back."""
    traffic = Traffic(
        target=on.target, payload=on.payload, point=LoadPoint(concurrency=NULL_IN_FLIGHT), folder=folder / "run"
    )
    bounds = (Bound(figure=ITEMS, least=1.25, aim=1.5), Bound(figure=PER_CPU, least=2.0, aim=3.0))
    return against_perf_analyzer("null, HTTP, 64 in flight", traffic, bounds, rounds)


def null_grpc(on: Served, folder: Path, rounds: int) -> list[Comparison]:
    """The same over gRPC."""
    described = target.describe(on.server.grpc or "", on.target.model, allowed={}, shapes={})
    pool = payload.prepare(
        described, folder / "grpc-payload", items_per_request=1, input_data=None, seed=0, protocol="grpc"
    )
    point = LoadPoint(concurrency=NULL_IN_FLIGHT, protocol="grpc", sender="grpc_aio")
    traffic = Traffic(target=described, payload=pool, point=point, folder=folder / "run")
    bounds = (Bound(figure=ITEMS, least=0.8, aim=0.95),)
    return against_perf_analyzer("null, gRPC, 64 in flight", traffic, bounds, rounds)


def image_http(on: Served, folder: Path, rounds: int) -> list[Comparison]:
    """One FP32 picture of 224 pixels a side in each request: 602,112 bytes."""
    traffic = Traffic(
        target=on.target, payload=on.payload, point=LoadPoint(concurrency=IMAGE_IN_FLIGHT), folder=folder / "run"
    )
    bounds = (Bound(figure=ITEMS, least=1.3, aim=1.5), Bound(figure=PER_CPU, least=2.0))
    return against_perf_analyzer("FP32 image, HTTP, 16 in flight", traffic, bounds, rounds)


def image_shared(on: Served, folder: Path, rounds: int) -> list[Comparison]:
    """The same pictures in system shared memory."""
    point = LoadPoint(concurrency=IMAGE_IN_FLIGHT, transport="shared_memory")
    asked = control(on.target.url, {}, Access())
    with regions.opened("shared_memory", asked, "bench", {}) as memory:
        assert memory is not None  # it is for the wire alone
        pool = payload.prepare(
            on.target, folder / "shared-payload", items_per_request=1, input_data=None, seed=0, memory=memory
        )
        traffic = Traffic(target=on.target, payload=pool, point=point, folder=folder / "run")
        bounds = (Bound(figure=ITEMS, least=1.15, aim=1.3),)

        def ours() -> Figures:
            memory.ensure_registered()  # perf_analyzer has the server forget every region
            return with_brim(traffic)

        return against_perf_analyzer("FP32 image, system shared memory, 16 in flight", traffic, bounds, rounds, ours)


def against_perf_analyzer(
    name: str, traffic: Traffic, bounds: Sequence[Bound], rounds: int, ours: Callable[[], Figures] | None = None
) -> list[Comparison]:
    """Brim's sender (`ours` if it needs more) beside perf_analyzer in its best mode for each figure."""
    tried = {mode: with_perf_analyzer(traffic, told) for mode, told in MODES.items()}
    best = {bound.figure: _best(tried, bound.figure) for bound in bounds}
    sides: dict[str, Callable[[], Figures]] = {"Brim": ours or partial(with_brim, traffic)}
    for mode in best.values():
        sides[mode] = partial(with_perf_analyzer, traffic, MODES[mode])
    reached = in_turns(sides, rounds)
    return [compare(name, reached, bound, ours="Brim", peer=best[bound.figure]) for bound in bounds]


def _best(tried: Mapping[str, Figures], figure: str) -> str:
    return max(tried, key=lambda mode: tried[mode][figure])


def two_senders(folder: Path, rounds: int) -> list[Comparison]:
    """Two sender processes beside one, each request with 200 us of work, on a stand-in for the server."""
    os.environ[LOOPS] = str(loops_for(BUSY_S))
    with stand_in.running(folder / "stand-in.log") as to, sending_by("benchmarks.busy_sender"):
        pool = payload.prepare(to, folder / "payload", items_per_request=1, input_data=None, seed=0)
        one, two = (
            Traffic(
                target=to, payload=pool, folder=folder / "run",
                point=LoadPoint(concurrency=BUSY_IN_FLIGHT, senders=senders),
            )
            for senders in (1, 2)
        )  # fmt: skip
        reached = in_turns({"two senders": partial(with_brim, two), "one": partial(with_brim, one)}, rounds)
    name, bounds = (
        "200 us of work a request, on a stand-in",
        (Bound(figure=ITEMS, least=1.7), Bound(figure=PER_CPU, least=0.9)),
    )
    return [compare(name, reached, bound, ours="two senders", peer="one") for bound in bounds]


def recording(folder: Path, rounds: int) -> list[Comparison]:
    """Rows kept or not, on a stand-in: there the sender does little else, so the share of recording is at its most."""
    with stand_in.running(folder / "stand-in.log") as to:
        pool = payload.prepare(to, folder / "payload", items_per_request=1, input_data=None, seed=0)
        traffic = Traffic(target=to, payload=pool, point=LoadPoint(concurrency=NULL_IN_FLIGHT), folder=folder / "run")

        def unrecorded() -> Figures:
            with sending_by("benchmarks.unrecorded_sender"):
                return with_brim(traffic)

        sides: dict[str, Callable[[], Figures]] = {"recorded": partial(with_brim, traffic), "unrecorded": unrecorded}
        reached = in_turns(sides, 2 * rounds)  # what is to be seen is a few percent
    bound = Bound(figure=PER_CPU, least=0.95)
    return [compare("recording, on a stand-in", reached, bound, ours="recorded", peer="unrecorded")]


#: cell -> the known server and its batch that it needs, and how it is measured.
SERVED = {
    "null-http": ("null", 64, null_http),
    "null-grpc": ("null", 64, null_grpc),
    "image-http": ("image", 8, image_http),
    "image-shared": ("image", 8, image_shared),
}
STANDING_IN = {"two-senders": two_senders, "recording": recording}


def measure(cells: Sequence[str], rounds: int) -> list[Comparison]:
    """The cells in order; each on a server of its own."""
    found: list[Comparison] = []
    for cell in cells:
        print(f"{cell} …", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="brim-bench-") as name:
            folder = Path(name)
            if cell in STANDING_IN:
                found += STANDING_IN[cell](folder, rounds)
                continue
            kind, max_batch, act = SERVED[cell]
            with served(_variant(kind, max_batch), folder, models=folder) as on:
                found += act(on, folder, rounds)
    return found


def _variant(kind: str, max_batch: int) -> Variant:
    config = resolve(ServingConfig(name=f"b{max_batch}", max_batch=max_batch), mode="embedded", known=True)
    return Variant(model=known_server(kind, {}), config=config)


def main(arguments: Sequence[str]) -> int:
    """All cells, the table and the file."""
    every = [*SERVED, *STANDING_IN]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rates", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="where the figures are kept")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of runs in turns, for each cell")
    parser.add_argument("--only", nargs="+", choices=every, default=every, metavar="CELL", help=" ".join(every))
    told = parser.parse_args(arguments)
    with exclusive():
        found = measure(told.only, told.rounds)
    file = keep(told.out, "rates", [document(comparison) for comparison in found])
    missed = [comparison for comparison in found if not comparison.held]
    print(table(found))
    print(f"{len(missed)} of {len(found)} missed; kept in {file}" if missed else f"all held; kept in {file}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(outcome(main))
