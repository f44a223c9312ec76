"""Loads that the parts send, what the server logged of them, and what its batches cost beyond that, by loads apart.

Writes the folders of the loads below the served variant's own.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.served import Served, load_spec, served
from brim import layout
from brim.errors import Lost
from brim.records import LoadPoint, Overheads, Variant
from experiments.measure.rates import OUTSTANDING
from experiments.measure.run import exclusive
from judging.open_truth import Stretch, overheads, overheads_open, service_times
from judging.slo_model import Model
from judging.slo_observed import Observed, service_latencies, throughput
from judging.truth import Log
from judging.windows import by_completion
from loadtest.driver import Driver, LoadSpec
from loadtest.perf_analyzer_driver import PerfAnalyzerDriver
from loadtest.rows import read_rows
from loadtest.sender_driver import SenderDriver
from queueing.arrivals import Offsets, poisson
from queueing.batcher import Batcher, Service
from serve.executions import executions_by_instance

#: Of a command of Brim.
LIMIT_S = 900.0
#: Seconds of each closed load that overheads are measured by.
FROZEN_S = 8.0
#: The open load that they are measured by: its share of the capacity (batches of all sizes, and mostly a request that
#: waits behind them), and how many times as long as a closed one it lasts, as it is random.
BUSY_SHARE, BUSY_TIMES = 0.85, 2.5
#: Seeds from here on are of loads that overheads are measured by, and of none that is judged.
FREEZING = 100


@contextlib.contextmanager
def fresh(variant: Variant, folder: Path, models: Path | None = None) -> Iterator[Served]:
    """A server of its own in a folder that holds nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    with served(variant, folder, models=models or folder) as on:
        yield on


def closed(on: Served, concurrency: int, *, seconds: float) -> Observed:
    """So many requests in flight by Brim's sender."""
    return _sent(SenderDriver(), load_spec(on, concurrency, seconds=seconds))


def opened(on: Served, offsets_ns: Offsets, *, rate: float, seconds: float) -> Observed:
    """Requests at those instants by Brim's sender."""
    spec = at_rate(load_spec(on, 1, seconds=seconds), rate, offsets_ns)
    return replace(_sent(SenderDriver(), spec), offsets_ns=offsets_ns)


def at_rate(spec: LoadSpec, rate: float, offsets_ns: Offsets) -> LoadSpec:
    """The same load in open loop, with its schedule beside it."""
    file = Path(spec.folder) / "schedule.npy"
    np.save(file, offsets_ns)
    return replace(spec, point=_rate(rate), arrivals=str(file))


def poisson_load(on: Served, *, rate: float, seconds: float, seed: int) -> Observed:
    """Poisson arrivals by Brim's sender."""
    return opened(on, poisson(rate, seconds, seed), rate=rate, seconds=seconds)


def by_perf_analyzer(on: Served, *, rate: float, seconds: float) -> Observed:
    """Poisson arrivals by perf_analyzer, on its own schedule, which it does not tell."""
    point = replace(_rate(rate), sender="perf_analyzer")
    return _sent(PerfAnalyzerDriver(), replace(load_spec(on, 1, seconds=seconds), point=point))


def _rate(rate: float) -> LoadPoint:
    return LoadPoint(mode="open", rate_per_s=rate, arrivals="poisson", outstanding=OUTSTANDING)


def _sent(driver: Driver, spec: LoadSpec) -> Observed:
    """Send it to its end; Lost unless it ended well."""
    folder = Path(spec.folder)
    with exclusive():
        result = driver.start(spec, folder).finish()
    if result.ended != "finished" or not result.ok:
        raise Lost(f"a load was no good: {result.ended} {result.reason} {dict(result.errors)}")
    rows = by_completion(read_rows(folder))
    return Observed(load=0, start_ns=result.start_ns, end_ns=int(rows["sent_ns"].max()), rows=rows)


def log_of(on: Served) -> Log:
    """What the known server has logged until now."""
    return Log.of(executions_by_instance(on.logs, on.variant.name))


def in_numbers(log: Log, load: Observed) -> tuple[float, float]:
    """Of a closed load behind its warm-up: items a second between whole batches, and mean latency in seconds."""
    batches = log.ended(load.settled_ns, load.end_ns)
    if not len(batches):
        raise Lost("the server logged no batch of a load")
    period_ns = max(1, (load.end_ns - load.settled_ns) // len(batches))
    return throughput(load, period_ns), float(service_latencies(load).mean())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frozen:
    """The overheads, and items a second with full batches, by loads that are not judged.

    Measured before anything is judged; only the part `open` also measures them behind each load, and takes the mean.
    """

    batcher: Batcher
    overheads: Overheads
    capacity: float
    start_ns: int
    end_ns: int  # of the loads that it is of

    @property
    def words(self) -> str:
        o = self.overheads
        return (
            f"occupancy {o.occupancy_ms:.3f} + {o.occupancy_per_item_ms:.3f} b ms, additive {o.additive_ms:.3f} ms, "
            f"capacity {self.capacity:.2f}/s"
        )

    def model(self, log: Log, load: Observed | None = None) -> Model:
        """The server for the simulator: service times as logged during a load, or during the loads of the overheads."""
        start_ns, end_ns = (self.start_ns, self.end_ns) if load is None else (load.start_ns, load.end_ns)
        mean_s, factors = service_times(log.ended(start_ns, end_ns), self.batcher.max_batch)
        service = Service.of(self.batcher, lambda size: float(mean_s[size - 1]))
        return Model(batcher=self.batcher, service=service, overheads=self.overheads, noise=factors)

    def until(self, after: Frozen) -> Frozen:
        """For what is measured between these loads and later ones: a machine drifts by a tenth of a millisecond."""
        means = {
            name: (getattr(self.overheads, name) + getattr(after.overheads, name)) / 2
            for name in ("occupancy_ms", "occupancy_per_item_ms", "additive_ms")
        }
        return replace(self, overheads=Overheads(**means))


def freeze(on: Served, *, seconds: float) -> Frozen:
    """For a closed loop: one request alone, two an instance, and two full batches an instance, `seconds` each.

    Lost if the log does not tell how one batch follows another in all three.
    """
    instances = on.variant.config.instances
    loads = [closed(on, n, seconds=seconds) for n in (1, 2 * instances, on.target.full)]
    log = log_of(on)
    found = overheads(*(_stretch(log, load) for load in loads))
    if found is None:
        raise Lost(
            f"no batch follows another in the log of a closed load of {seconds:g} s, so what one costs is not known; "
            f"send longer loads, and look at the executions-*.csv in {on.logs}"
        )
    capacity, _ = in_numbers(log, loads[-1])
    return _frozen(on, found, capacity, loads)


def freeze_open(on: Served, *, seconds: float, seed: int) -> Frozen:
    """For an open loop: full batches for `seconds`, and Poisson arrivals for BUSY_TIMES that.

    Lost if a request of these did not end well, or none waited behind a batch.
    """
    full = closed(on, on.target.full, seconds=seconds)
    capacity, _ = in_numbers(log_of(on), full)
    busy = poisson_load(on, rate=BUSY_SHARE * capacity, seconds=BUSY_TIMES * seconds, seed=seed)
    found = overheads_open(log_of(on), busy.rows, Batcher.of(on.variant.config))
    if found is None:
        raise Lost(
            f"what a batch costs is not known: of {len(busy.rows)} requests at {BUSY_SHARE:.0%} of the capacity one "
            f"did not end well, or none waited behind a batch; look at the server's log in {on.logs}, and measure again"
        )
    return _frozen(on, found, capacity, [full, busy])


def _frozen(on: Served, found: Overheads, capacity: float, loads: Sequence[Observed]) -> Frozen:
    return Frozen(
        batcher=Batcher.of(on.variant.config), overheads=found, capacity=capacity, start_ns=loads[0].start_ns,
        end_ns=loads[-1].end_ns,
    )  # fmt: skip


def _stretch(log: Log, load: Observed) -> Stretch:
    latency_ms = 1e3 * float(service_latencies(load).mean())
    return Stretch(log=log, start_ns=load.settled_ns, end_ns=load.end_ns, latency_ms=latency_ms)


def brim_loadtest(on: Served, *asked: str) -> Path:
    """`brim loadtest` on it, as users run it: the folder of its run; Lost if there is none."""
    runs = layout.runs(on.folder)
    before = set(runs.iterdir()) if runs.exists() else set()
    command = [sys.executable, "-m", "brim", "loadtest", on.variant.name, *asked, "--out", str(on.folder), "--quiet"]
    try:
        code = subprocess.run(
            command, cwd=layout.CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=LIMIT_S,
            check=False,
        ).returncode  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Lost(f"`brim loadtest {' '.join(asked)}` did not end within {LIMIT_S:g} s") from None
    found = sorted(set(runs.iterdir()) - before) if runs.exists() else []
    if len(found) != 1:
        raise Lost(f"`brim loadtest {' '.join(asked)}` left {len(found)} runs (exit code {code})")
    return found[0]
