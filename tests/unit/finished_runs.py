"""Run folders as a measurement leaves them, made of records: a server that saturates at 4 x 1/(0.2 s) = 20 items/s.

And open loops: rows of a server that takes 5 ms a request, one after the other, and stalls once.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from markupsafe import Markup

from analysis import charts, rate_charts, report
from brim import codec, disk, layout
from brim.records import (
    ROW_HEADER,
    ROW_MAGIC,
    ROW_SCHEMA,
    Check,
    CrossCheck,
    Environment,
    Latency,
    Load,
    LoadPoint,
    Overheads,
    Overload,
    OverloadPoint,
    Probe,
    Purpose,
    Recovery,
    Run,
    Saturation,
    ServerDelta,
    ServiceTime,
    Slo,
    SloRate,
    SloTrial,
    Status,
    Target,
    Tensor,
    Verdict,
    Window,
)
from judging.rows import ROW_DTYPE, Rows

BATCH = "20260101T000000Z-abc123"
SECOND = 10**9
#: What the server takes for a batch of four, and so its capacity.
SERVICE_MS, MAX_BATCH = 200.0, 4
CAPACITY = MAX_BATCH / (SERVICE_MS / 1e3)
#: Requests in flight of each load, what it was for, and what came of it (items/s).
LADDER: tuple[tuple[int, Purpose, float], ...] = (
    (1, "search", 5.0), (2, "search", 9.5), (4, "search", 10.1), (8, "search", 19.8), (16, "search", 20.0),
    (16, "one_more_sender", 20.1), (8, "figure", 19.9), (8, "cross_check", 19.7),
    (8, "figure", 20.0), (8, "cross_check", 19.6),
)  # fmt: skip

TARGET = Target(
    url="http://127.0.0.1:8000",
    model="resnet50__b4",
    version="",
    inputs=(Tensor(name="image", dtype="FP32", shape=(3, 224, 224)),),
    outputs=(Tensor(name="logits", dtype="FP32", shape=(1000,)),),
    max_batch=MAX_BATCH,
    instances=1,
    server_name="brim",
    server_version="2.51.0",
    item="image",
)
MACHINE = {"cpu": "AMD EPYC", "cores": "2", "memory_gib": "24", "gpu": "none"}


def run(**changes: Any) -> Run:
    made = Run(
        id="20260101T000000Z-resnet50__b4-0a1b2c",
        batch_id=BATCH,
        command="brim loadtest resnet50__b4",
        target=TARGET,
        environment=Environment(machine=MACHINE, software={"brim": "0.1.0", "locust": "2.47.0"}),
        started_utc="2026-01-01T00:00:00Z",
        pid=1,
        process_started_s=0.0,
        unix_ns=0,
        monotonic_ns=0,
        status="closed",
    )
    return dataclasses.replace(made, **changes)


def probe(index: int, concurrency: int, purpose: Purpose, rate: float, **changes: Any) -> Probe:
    """A load whose latency obeys Little's law; four in flight alternate between two batches of two."""
    other = purpose == "cross_check"
    mean = concurrency / rate * 1e3
    batch = 4.0 if concurrency >= 8 else max(1.0, concurrency / 2)
    made = Probe(
        load=index,
        purpose=purpose,
        generator="perf_analyzer" if other else "locust",
        server_start=0,
        at=LoadPoint(concurrency=concurrency, sender="perf_analyzer" if other else "locust_http"),
        items_per_s=rate,
        ci95=(0.99 * rate, 1.01 * rate),
        latency_ms=Latency(mean=mean, p50=mean, p90=1.05 * mean, p95=1.1 * mean, p99=1.2 * mean),
        effective_batch=batch,
        queue_ms=max(0.0, mean - SERVICE_MS - 2),
        server_ms=mean - 2,
        server_busy=min(1.0, rate * SERVICE_MS / 1e3 / batch),
        batch_counts={"1": 1, "2": 3, "4": 200} if batch == 4 else {str(int(batch)): 100},
        verdict="steady",
    )
    return dataclasses.replace(made, **changes)


def probes() -> tuple[Probe, ...]:
    return tuple(probe(index, *asked) for index, asked in enumerate(LADDER))


def checks() -> tuple[Check, ...]:
    return (
        Check(rule=1, name="accounting", state="held", value=3, bound=12, reason="server 303 items, client 300"),
        Check(rule=3, name="limit_by_experiment", state="held", value=0.002, bound=0.03,
              reason="another sender changed nothing (+0.2%)"),
        Check(rule=5, name="generators_agree", state="held", value=0.011, bound=0.05,
              reason="locust 19.9/s, perf_analyzer 19.7/s"),
        Check(rule=8, name="calibrated", state="not_applicable", reason="brim calibrate comes later"),
    )  # fmt: skip


def answer(**changes: Any) -> Saturation:
    made = Saturation(
        run=run().id,
        batch_id=BATCH,
        variant="resnet50__b4",
        target=TARGET.url,
        backend="python",
        server_version="2.51.0",
        verdict=Verdict.SATURATED,
        limited_by="engine",
        reasons=("engine: busy 99%, batches 4.0 of 4", "another sender changed nothing (+0.2%)"),
        items_per_s=19.9,
        ci95=(19.7, 20.1),
        ci_kind="between_starts",
        at=LoadPoint(concurrency=8, payload="random:0"),
        latency_ms=Latency(mean=402, p50=400, p90=410, p95=420, p99=460),
        effective_batch=3.98,
        queue_ms=198.0,
        server_busy=0.99,
        client_cpu_cores=0.1,
        serving_efficiency=0.975,
        cross_check=CrossCheck(generator="perf_analyzer", items_per_s=19.7, agrees=True),
        checks=checks(),
        seconds_spent=412.0,
        item="image",
        in_process_items_per_s=20.4,
        starts=3,
        start_means=(19.8, 19.9, 20.0),
        max_batch=MAX_BATCH,
        instances=1,
        probes=probes(),
        command="brim loadtest resnet50__b4 --starts 3",
    )
    return dataclasses.replace(made, **changes)


def load(index: int, concurrency: int, purpose: Purpose, requests: int, **changes: Any) -> Load:
    made = Load(
        index=index, generator="locust", purpose=purpose, point=LoadPoint(concurrency=concurrency),
        workers=(index,), start_ns=index * 100 * SECOND, end_ns=index * 100 * SECOND + 20 * SECOND, sent=requests,
        ok=requests, rejected=0, timed_out=0, failed=0, cancelled=0, items_ok=requests, client_cpu_s=1.0,
        ended="finished",
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def window(of: Load, requests: int, **changes: Any) -> Window:
    """Ten seconds of `requests` requests in full batches, each 100 ms in the queue and 300 ms in the server."""
    batches = requests // MAX_BATCH
    made = Window(
        generator=of.generator, point=of.point, start_ns=of.start_ns + 5 * SECOND, end_ns=of.start_ns + 15 * SECOND,
        items_ok=requests, in_flight_start=0, sent=requests, ok=requests, rejected=0, timed_out=0, failed=0,
        cancelled=0, in_flight_end=0, latency_ms=Latency(mean=302, p50=300, p90=310, p95=320, p99=330),
        server=ServerDelta(
            read_width_ns=1, seconds=10.0, inference_count=requests, execution_count=batches, success_count=requests,
            fail_count=0, queue_ns=requests * SECOND // 10, request_ns=requests * 3 * SECOND // 10,
            batch_counts={str(MAX_BATCH): batches}, busy_ns=8 * SECOND, infer_ns=8 * SECOND,
        ),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def keep(
    out: Path, of: Run, said: Saturation | None, loads: tuple[Load, ...] = (), windows: tuple[Window, ...] = ()
) -> Path:
    """The run's folder under `out`."""
    folder = layout.run_folder(out, of.id)
    disk.save(folder / "run.json", of)
    for name, records in (("loads.jsonl", loads), ("windows.jsonl", windows)):
        if records:
            disk.save_text(folder / name, "".join(f"{codec.to_json(record)}\n" for record in records))
    if said is not None:
        disk.save(folder / "saturation.json", said)
    return folder


#: Charts by name and arguments: drawing them takes most of the time of a page, and tests of words need them once.
_drawn: dict[str, Markup] = {}


def write(out: Path, folders: Sequence[Path]) -> Path:
    """report.write with charts that are drawn once; against report.write itself it shows that equal runs are."""
    with drawn_once():
        return report.write(out, folders)


@contextlib.contextmanager
def drawn_once() -> Iterator[None]:
    """A chart that this process drew before, of equal arguments, is not drawn again."""
    of_a_run, of_rates = (charts.curve, charts.batches, charts.time), (rate_charts.over_the_limit, rate_charts.goodput)
    with pytest.MonkeyPatch.context() as changed:
        for draw in (*of_a_run, *of_rates, rate_charts.latency_over_time):
            changed.setattr(f"{draw.__module__}.{draw.__name__}", _once(draw))
        yield


def _once(draw: Callable[..., Markup]) -> Callable[..., Markup]:
    def drawn(*told: object) -> Markup:
        key = f"{draw.__name__}{told}"
        if key not in _drawn:
            _drawn[key] = draw(*told)
        return _drawn[key]

    return drawn


# ---------------------------------------------------------------------------- an open loop, a rate at an SLO, overload

#: Of the open loop: a request each 10 ms for 20 s, 5 ms of service, and nothing for a second from the tenth on.
GAP_NS, SERVICE_NS, REQUESTS = 10_000_000, 5_000_000, 2000
STALL_AT_NS, STALL_NS = 10 * SECOND, SECOND
OPEN = LoadPoint(mode="open", rate_per_s=100.0, arrivals="constant", outstanding=512)


def arrivals() -> npt.NDArray[np.int64]:
    return np.arange(REQUESTS, dtype=np.int64) * GAP_NS


def open_rows(start_ns: int, *, stall_ns: int = STALL_NS, outstanding: int = REQUESTS) -> Rows:
    """done = max(sent, free) + service, and sent once fewer than `outstanding` are in flight."""
    rows = np.zeros(REQUESTS, ROW_DTYPE).view(Rows)
    free_ns, stalled, done_ns = 0, False, list[int]()
    for number, due_ns in enumerate(arrivals().tolist()):
        sent_ns = max(due_ns, done_ns[number - outstanding]) if number >= outstanding else due_ns
        begin_ns = max(sent_ns, free_ns)
        if begin_ns >= STALL_AT_NS and not stalled:
            begin_ns, stalled = begin_ns + stall_ns, True
        free_ns = begin_ns + SERVICE_NS
        done_ns.append(free_ns)
        rows[number] = (start_ns + due_ns, start_ns + sent_ns, start_ns + free_ns, 1, 0, Status.OK)
    return rows


def keep_rows(folder: Path, worker: int, rows: Rows) -> None:
    """As a sender leaves them."""
    file = folder / "requests" / f"{worker}.bin"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(ROW_HEADER.pack(ROW_MAGIC, ROW_SCHEMA, 0, 0) + rows.tobytes())


def open_load(index: int = 0, **changes: Any) -> Load:
    made = load(index, 1, "figure", REQUESTS, point=OPEN, schedule="raw/00-locust/schedule.npy")
    return dataclasses.replace(made, **changes)


def open_answer(**changes: Any) -> Saturation:
    """The answer of a run whose only load is the open loop."""
    only = probe(0, 1, "figure", 100.0, at=OPEN)
    made = answer(verdict=Verdict.POINT, limited_by="unknown", at=OPEN, items_per_s=100.0, ci95=(99.0, 101.0),
                  ci_kind="within_run", starts=1, start_means=(), cross_check=None, probes=(only,), reasons=(),
                  in_process_items_per_s=None, serving_efficiency=None)  # fmt: skip
    return dataclasses.replace(made, **changes)


def keep_open(out: Path, of: Load, rows: Rows, offsets: npt.NDArray[np.int64]) -> Path:
    """The folder of a run with that open loop."""
    folder = keep(out, run(), open_answer(), (of,))
    keep_rows(folder, of.workers[0], rows)
    schedule = folder / str(of.schedule)
    schedule.parent.mkdir(parents=True)
    np.save(schedule, offsets)
    return folder


def slo_rate(**changes: Any) -> SloRate:
    """16.8 of 20 items/s within 500 ms, which 1% of the requests may exceed."""
    rates = (15.0, 16.0, 16.8, 16.8, 16.8, 18.0)
    made = SloRate(
        slo=Slo(limit_ms=500.0, percentile=99.0), items_per_s=16.8, ci95=(16.4, 17.1), given="model",
        verdict="resolved", capacity_items_per_s=20.0,
        service=(ServiceTime(items=1, busy=1, ms=60.0, batches=80), ServiceTime(items=4, busy=1, ms=200.0, batches=90)),
        overheads=Overheads(occupancy_ms=0.4, occupancy_per_item_ms=0.05, additive_ms=0.6),
        trials=tuple(
            SloTrial(load=10 + n, items_per_s=rate, seconds=10.0, requests=round(10 * rate), over_share=share,
                     foreseen_share=share * 0.9 + 0.0005, long_run_share=0.01 * (rate / 16.8) ** 25)
            for n, (rate, share) in enumerate(zip(rates, (0.0, 0.004, 0.012, 0.006, 0.011, 0.07), strict=True))
        ),
        seconds_spent=74.0,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def overload(**changes: Any) -> Overload:
    """Without limits goodput collapses beyond the rate; with a short queue it stays."""
    steps = (0.5, 0.8, 1.0, 1.25, 1.5, 2.0)
    points = [_beyond("b4", 30 + n, 16.8 * step, 20.0) for n, step in enumerate(steps)]
    points += [_beyond("b4-short", 40 + n, 16.8 * step, 19.0) for n, step in enumerate(steps)]
    made = Overload(
        slo=Slo(limit_ms=500.0, percentile=99.0), items_per_s=16.8, points=tuple(points),
        recoveries=(
            Recovery(policy="b4", burst_s=2.5, offered=33.6, seconds=None),
            Recovery(policy="b4-short", burst_s=2.5, offered=33.6, seconds=0.3),
        ),
        max_queue_size=8, queue_timeout_us=250_000, why="a full batch of 4 takes 200 ms on 1 instance",
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def _beyond(policy: str, index: int, offered: float, capacity: float) -> OverloadPoint:
    served, left = min(offered, capacity), max(0.0, offered - capacity)
    bounded = policy != "b4"
    good = served if bounded or not left else 0.1 * served
    return OverloadPoint(
        policy=policy, offered=offered, good=good, late=served - good, rejected=0.8 * left if bounded else 0.0,
        expired=0.2 * left if bounded else 0.0, failed=0.0 if bounded else left, load=index,
    )  # fmt: skip


def rate_loads() -> tuple[Load, ...]:
    """The loads of the ladder, then those of the search for the rate and of the overload, which have no windows."""
    ladder = tuple(load(n, concurrency, purpose, 400) for n, (concurrency, purpose, _) in enumerate(LADDER))
    at = LoadPoint(mode="open", rate_per_s=16.8, arrivals="poisson", seed=1, outstanding=64)
    trials = tuple(load(10 + n, 1, "trial", 160, point=at) for n in range(6))
    beyond = tuple(load(30 + n, 1, "overload", 160, point=at) for n in range(12))
    return (*ladder, *trials, load(20, 8, "profile", 160), *beyond)


def keep_rates(folder: Path, slo: SloRate | None, over: Overload | None = None) -> Path:
    """Put slo.json and overload.json beside what a run's folder has."""
    for name, record in (("slo.json", slo), ("overload.json", over)):
        if record is not None:
            disk.save(folder / name, record)
    return folder
