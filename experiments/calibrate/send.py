"""One load of a calibration: the cell as a load point, sent by one generator, beside the server's own log of it.

Writes under the folder of the calibration: payloads, raw/<load>/, requests/, loads.jsonl.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from brim import disk, layout
from brim.errors import Lost, NoResource
from brim.records import CalibrationRow, LoadPoint, Sender, Server, Target, Variant
from brim.say import Say
from experiments.calibrate.held import Measured, Own
from experiments.calibrate.plan import described
from experiments.measure.send import SCHEDULE
from judging.truth import Log
from judging.windows import Generator, by_completion
from loadtest import loadgen, payload, perf_analyzer_output, prepared
from loadtest import target as targets
from loadtest.control import control
from loadtest.driver import Driver, LoadSpec
from loadtest.load import Loaded, run_load
from loadtest.loadgen import Settings
from loadtest.loadgen_driver import LoadGenDriver
from loadtest.perf_analyzer_driver import LOG, PerfAnalyzerDriver, csv_file
from loadtest.plan import LoadPlan
from loadtest.rows import read_rows
from loadtest.sender_driver import SenderDriver
from loadtest.statistics_reader import StatisticsReader
from queueing.arrivals import offsets_of
from serve import executions

SENDERS: Mapping[Generator, Sender] = {
    "locust": "locust_http", "perf_analyzer": "perf_analyzer", "loadgen": "loadgen",
}  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Bench:
    """One calibration: its server, its folder, and what has been measured."""

    server: Server
    servers: Path  # the --out of the server
    folder: Path
    plan: LoadPlan
    say: Say
    rows: list[CalibrationRow] = field(default_factory=list)
    closed: dict[tuple[str, Generator, int], Measured] = field(default_factory=dict)  # by variant and concurrency
    verdicts: list[str] = field(default_factory=list)  # LoadGen's own, in our words
    loads: int = 0


def send(
    bench: Bench, variant: Variant, point: LoadPoint, generator: Generator, *, seconds: float, expected_per_s: float
) -> Measured | None:
    """One load to its end; None for a generator that crashed, which is told. A lost server or a signal is raised."""
    target, pool = _described(bench, variant)
    spec = _spec(bench, target, pool, point, generator, seconds)
    ask = control(target.url, {}, target.access)
    reader = StatisticsReader(ask, target, bench.server.pid)
    loaded = run_load(
        _driver(generator, expected_per_s), spec, bench.plan, reader, index=bench.loads, purpose="figure", length=None,
        suffices=None, progress=lambda elapsed_s, wanted_s: None,
    )  # fmt: skip
    bench.loads += 1
    disk.append(bench.folder / "loads.jsonl", loaded.load)
    _raise_what_ended(loaded)
    if loaded.load.ended == "crashed":
        bench.say.warn(f"{generator} gave nothing: {' '.join(loaded.load.reasons)}")
        return None
    if generator == "loadgen":
        at = f"{point.concurrency} in flight" if point.mode == "closed" else f"{point.rate_per_s:.4g}/s"
        bench.verdicts += [f"{described(variant)} at {at}: {said}" for said in loaded.load.reasons]
    return _measured(bench, variant, loaded)


def _described(bench: Bench, variant: Variant) -> tuple[Target, Path]:
    """The variant as its server describes it, and its payload, written once."""
    target = targets.describe(
        bench.server.http, variant.name, allowed={}, variant=variant, server=bench.server, shapes={}
    )  # fmt: skip
    folder = bench.folder / "raw" / f"payload-{variant.name}"
    if not prepared.payload_file(folder).exists():
        payload.prepare(target, folder, items_per_request=1, input_data=None, seed=bench.plan.seed)
    return target, folder


def _spec(
    bench: Bench, target: Target, pool: Path, point: LoadPoint, generator: Generator, seconds: float
) -> LoadSpec:  # fmt: skip
    folder = disk.make_folder(bench.folder / "raw" / f"{bench.loads:02d}-{generator}")
    arrivals = None
    if point.mode == "open" and generator == "locust":  # the others keep schedules of their own
        arrivals = str(folder / SCHEDULE)
        with disk.told(folder):
            np.save(arrivals, offsets_of(point, seconds), allow_pickle=False)
    return LoadSpec(
        url=target.url, model=target.model, version=target.version, point=point, payload=str(pool),
        folder=str(folder), rows=str(bench.folder / "requests"), first_worker=bench.loads, seconds=seconds,
        timeout_s=bench.plan.request_timeout_seconds, drain_s=bench.plan.longest_drain_s, samples=bench.plan.samples,
        arrivals=arrivals,
    )  # fmt: skip


def _driver(generator: Generator, expected_per_s: float) -> Driver:
    if generator == "locust":
        return SenderDriver()
    if generator == "perf_analyzer":
        return PerfAnalyzerDriver(batched=True)
    return LoadGenDriver(Settings(expected_per_s=expected_per_s))


def _measured(bench: Bench, variant: Variant, loaded: Loaded) -> Measured:
    load = loaded.load
    log = executions.executions_by_instance(layout.server_folder(bench.servers, bench.server.id), variant.name)
    rows = by_completion(read_rows(bench.folder, load.workers))
    return Measured(
        generator=load.generator, rows=rows, reads=loaded.reads, log=Log.of(log), own=_own(loaded, len(rows))
    )


def _own(loaded: Loaded, sent: int) -> Own | None:
    """What the generator says itself: a count and a rate, which is a stretch from its first request on."""
    load, folder = loaded.load, loaded.folder
    count: int | None
    if load.generator == "perf_analyzer":
        rate = perf_analyzer_output.csv_rate(csv_file(folder).read_text(encoding="utf-8"), load.point)
        count = perf_analyzer_output.reported_requests((folder / LOG).read_bytes())
    elif load.generator == "loadgen":
        summary = loadgen.read_summary((folder / loadgen.SUMMARY).read_text(encoding="utf-8"))
        rate, count = (summary.samples_per_s if summary else None), sent
    else:
        return None
    if not rate or not count:
        return None
    return Own(items_per_s=rate, start_ns=load.start_ns, end_ns=load.start_ns + round(count / rate * 1e9))


def _raise_what_ended(loaded: Loaded) -> None:
    """A signal, a full disk or a lost server ends the calibration; a generator that crashed does not."""
    said = next(iter((*loaded.load.reasons, *loaded.load.errors)), "")
    if loaded.no_room:
        raise NoResource(said)
    if loaded.interrupted is not None:
        raise loaded.interrupted
    if loaded.load.ended == "server_lost":
        raise Lost(f"the server was lost: {said}")
