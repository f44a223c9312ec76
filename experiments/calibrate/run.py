"""The shell of a calibration: serve the known servers, load each by every generator, hold the rows against the logs.

Writes <out>/calibrate/: its servers and their variants, and for each calibration <utc>/{calibration.json, loads.jsonl,
overheads-<variant>-<generator>.json, requests.parquet, raw/}.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from brim import disk, environment, layout
from brim.offspring import undisturbed
from brim.records import Calibration, CalibrationRow, LoadPoint, Variant
from brim.say import Say
from experiments.calibrate import held, held_open, show
from experiments.calibrate.held import Measured
from experiments.calibrate.plan import Cell, described, opened, short_set, variants
from experiments.calibrate.send import SENDERS, Bench, send
from experiments.measure.run import exclusive
from judging.windows import Generator
from loadtest.plan import read_plan
from loadtest.rows import close_rows
from serve import embedded, ledger
from serve.variants import build

READY_WITHIN_S = 120.0
#: In a stretch of fewer batches, one more or less at its edge is not small against the bounds.
BATCHES_LEAST = 50
#: Percentiles need more requests than rates.
OPEN_FACTOR = 4.0


def calibrate(cells: Sequence[Cell], *, out: Path, seconds: float, say: Say, generators: Sequence[Generator]) -> Bench:
    """Every cell by every generator, then the open loops that follow from them.

    What was measured before a signal or a lost server is kept there, too.
    """
    out = layout.calibrations(out)
    repository = out / "model_repository"
    busy = f"another brim calibrate is at work in {out}; wait for it"
    with exclusive(), disk.lock(layout.servers(out) / "serve.lock", busy):
        for server_id in ledger.sweep(out, repository):
            say.progress(f"{server_id} had ended without being stopped: cleaned up after it")
        served = variants(cells)
        embedded.require_shared_memory(served)
        for variant in served:
            build(variant, out=out, repository=repository, viewed=ledger.viewed(repository))
        folder = disk.make_folder(out / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
        names = [variant.name for variant in served]
        with embedded.for_a_while(names, out=out, repository=repository, say=say, wait_s=READY_WITHIN_S) as server:
            bench = Bench(server=server, servers=out, folder=folder, plan=read_plan(None), say=say)
            ended = False
            try:
                for cell in cells:
                    for generator in generators:
                        _closed(bench, cell, generator, seconds)
                for variant in opened(cells):
                    for generator in filter(held_open.GENERATORS.__contains__, generators):
                        _open(bench, variant, generator, OPEN_FACTOR * seconds)
                ended = True
            finally:
                with undisturbed():
                    _keep(folder, bench, out, latest=ended and list(cells) == short_set())
    return bench


def _keep(folder: Path, bench: Bench, out: Path, *, latest: bool) -> None:
    """What was found; the `latest` is what rule 8 of every later measurement asks: all of the short set, to its end."""
    made = Calibration(
        made_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment.describe({"triton": bench.server.version}),
        rows=tuple(bench.rows),
    )
    disk.save(folder / "calibration.json", made)
    if latest:
        disk.save(out / "latest.json", made)
    close_rows(folder)


def _closed(bench: Bench, cell: Cell, generator: Generator, seconds: float) -> None:
    """One closed loop, and the rows that it gives."""
    bench.say.progress(f"{cell.server}: {show.NAMES[generator]}, {cell.concurrency} in flight")
    point = LoadPoint(concurrency=cell.concurrency, sender=SENDERS[generator])
    expected_per_s = held.known_rate(cell, bench.rows) or 1.0  # an earlier generator's: LoadGen wants to be told
    measured = send(bench, cell.variant, point, generator, seconds=seconds, expected_per_s=expected_per_s)
    if measured is None:
        _take_down(bench, held.nothing(cell, generator))
        return
    bench.closed[cell.variant.name, generator, cell.concurrency] = measured
    if (batches := held.batches(measured, cell.concurrency)) < BATCHES_LEAST:
        bench.say.warn(f"only {batches} batches in {seconds:g} s, too few to be sure; add --seconds")
    _take_down(bench, held.rows_of(cell, measured))


def _open(bench: Bench, variant: Variant, generator: Generator, seconds: float) -> None:
    """The open loops of one server at shares of the capacity that its closed loop showed.

    The first, which is not judged, tells what a batch costs. Without that the others are not sent, and have no figures:
    what a batch costs in a closed loop is another thing.
    """
    capacity = held_open.capacity(variant, bench.closed.get((variant.name, generator, variant.config.full)))
    if capacity is None:
        bench.say.warn(f"{variant.name}: no open loop by {generator}: its closed loops had no full batches")
        return
    unjudged = _open_load(bench, variant, generator, held_open.BETWEEN, capacity, seconds)
    frozen = held_open.frozen_open(variant, unjudged)
    if frozen is None:
        bench.say.warn(
            f"{variant.name}: no open loop by {generator} is judged: in the one at {held_open.BETWEEN:.0%} of its "
            "capacity not every request ended well, or none waited behind a batch; repeat it, or add --seconds"
        )
        for share in held_open.SHARES:
            _take_down(bench, held_open.rows_of(variant, generator, share, None, None))
        return
    disk.save(bench.folder / f"overheads-{variant.name}-{generator}.json", frozen)
    bench.say.progress(f"{described(variant)}: {show.NAMES[generator]}, {show.overheads(frozen)}")
    for share in held_open.SHARES:
        bench.say.progress(f"    {share * capacity:.4g}/s, {share:.0%} of its capacity")
        measured = _open_load(bench, variant, generator, share, capacity, seconds)
        _take_down(bench, held_open.rows_of(variant, generator, share, frozen, measured))


def _open_load(
    bench: Bench, variant: Variant, generator: Generator, share: float, capacity: float, seconds: float
) -> Measured | None:
    rate = share * capacity
    point = LoadPoint(
        mode="open", rate_per_s=round(rate, 3), arrivals="poisson", seed=round(100 * share),
        outstanding=held_open.OUTSTANDING * variant.config.full, sender=SENDERS[generator],
    )  # fmt: skip
    return send(bench, variant, point, generator, seconds=seconds, expected_per_s=rate)


def _take_down(bench: Bench, rows: Sequence[CalibrationRow]) -> None:
    bench.rows += rows
    for row in rows:
        bench.say.progress(f"    {show.line(row)}")
