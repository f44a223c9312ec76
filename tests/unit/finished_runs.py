"""Run folders as a measurement leaves them, made of records: a server that saturates at 4 x 1/(0.2 s) = 20 items/s."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from brim import disk, layout
from brim.records import (
    Check,
    CrossCheck,
    Environment,
    Latency,
    Load,
    LoadPoint,
    Probe,
    Purpose,
    Run,
    Saturation,
    ServerDelta,
    Target,
    Tensor,
    Verdict,
    Window,
)

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
    for one in loads:
        disk.append(folder / "loads.jsonl", one)
    for each in windows:
        disk.append(folder / "windows.jsonl", each)
    if said is not None:
        disk.save(folder / "saturation.json", said)
    return folder
