"""Each limit, produced on purpose on the real tritonserver, is named right; the pieces are driven directly."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
import pytest

from brim.kserve import KServe
from brim.records import KnownKind, LoadPoint, Server, ServingConfig, Target, Transport, Variant, Window
from brim.say import Say
from judging.edges import whole_batch_edge
from judging.evidence import (
    Evidence,
    SenderExperiment,
    TransferExperiment,
    client_cpu_cores,
    of_point,
    sender_experiment,
    server_cpu_cores,
)
from judging.limits import what_limits
from judging.verdict import gain
from judging.windows import answered, by_completion, window
from loadtest import payload, prepared, regions, rows, target
from loadtest.driver import LoadSpec
from loadtest.loopback import copy_rate
from loadtest.sender_driver import SenderDriver
from loadtest.statistics_reader import StatisticsReader, machine_seconds
from serve import embedded, known, variants

#: Two cores, whatever the machine has: one for each side where they are pinned apart, and both full where they share.
CORES = sorted(os.sched_getaffinity(0))[:2]

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(len(CORES) < 2, reason="senders and server cannot be pinned apart on one core"),
]

#: Seconds of a load, and of its beginning that is not looked at.
SECONDS, WARM_UP_S = 1.9, 0.5
#: What share of a side's cores others may take, for a limit that fills them to be seen; and how many loads of a test
#: may be sent again because they took more, and how many more may be so before it gives up.
OTHERS, SPARE, MOST_DISTURBED = 0.1, 3, 2
#: Senders are added while one more gains.
MOST_SENDERS, ROUNDS = 3, 3
#: A slowed sender runs for the first part of each turn and is stopped for the rest.
RUNS_S, TURN_S = 0.04, 0.2


def variant(kind: KnownKind, name: str, parameters: dict[str, float], **config: Any) -> Variant:
    config = {"max_batch": 8, **config}
    return Variant(
        model=known.known_server(kind, parameters),
        config=ServingConfig(name=name, engine="known", backend="python", **config),
    )


MANY = variant("null", "b8x4", {}, instances=4)
ONE = variant("null", "b8", {})
SLEEP = variant("sleep", "b4", {"service_ms": 20}, max_batch=4)
HELD = variant("sleep", "held", {"service_ms": 5}, queue_delay_us=50_000)
LARGE = variant("image", "fp32", {"bits": 32})
SMALL = variant("image", "uint8", {"bits": 8})
BEFORE = variant("sleep", "before", {"service_ms": 20})
LAST = variant("sleep", "last", {"service_ms": 5})

#: Two steps, of which the first takes four times as long.
ENSEMBLE = f"""
name: "two-steps" platform: "ensemble" max_batch_size: 8
input [{{ name: "INPUT" data_type: TYPE_FP32 dims: [16] }}]
output [{{ name: "OUTPUT" data_type: TYPE_FP32 dims: [16] }}]
ensemble_scheduling {{ step [
  {{ model_name: "{BEFORE.name}" model_version: -1
     input_map {{ key: "INPUT" value: "INPUT" }} output_map {{ key: "OUTPUT" value: "MIDDLE" }} }},
  {{ model_name: "{LAST.name}" model_version: -1
     input_map {{ key: "INPUT" value: "MIDDLE" }} output_map {{ key: "OUTPUT" value: "OUTPUT" }} }} ] }}
"""


@dataclass
class Bench:
    """One server, and the loads that are sent to it."""

    server: Server
    folder: Path
    cpus: tuple[int, ...] = ()  # of the senders
    targets: dict[str, Target] = field(default_factory=dict)
    loads: int = 0
    spare: int = SPARE
    disturbed: int = 0  # loads of a test beside which others took too much, all the same
    others: float = 0.0  # share of either side's cores that neither server nor senders used during the last load

    def afresh(self) -> Bench:
        """For the next test."""
        self.spare, self.disturbed = SPARE, 0
        return self

    def target(self, model: str, of: Variant | None = None) -> Target:
        if model not in self.targets:
            self.targets[model] = target.describe(
                self.server.http, model, allowed={}, variant=of, server=self.server, shapes={}
            )
        return self.targets[model]

    def load(
        self,
        of: Target,
        *,
        concurrency: int,
        senders: int = 1,
        slowed: bool = False,
        transport: Transport = "wire",
    ) -> Window:
        """One load, and the window of it that lies between two reads of the statistics."""
        self.loads += 1
        run = self.folder / f"load-{self.loads}"
        point = LoadPoint(concurrency=concurrency, senders=senders, transport=transport)
        ask = KServe(of.url)
        with regions.opened(transport, ask, f"limits-{self.loads}", {}) as memory:
            pool = payload.prepare(
                of, run / "payload", items_per_request=1, input_data=None, seed=1, pool=4, memory=memory
            )
            spec = LoadSpec(
                url=of.url,
                model=of.model,
                version="",
                point=point,
                payload=str(pool),
                folder=str(run / "raw"),
                rows=str(run / "requests"),
                first_worker=0,
                seconds=SECONDS,
                timeout_s=10.0,
                drain_s=5.0,
                samples=0,
                cpus=self.cpus,
            )
            reader = StatisticsReader(ask, of, self.server.pid)
            running = SenderDriver().start(spec, run / "raw")
            reader.watch_clients(running.pids)
            with slow(running.pids) if slowed else contextlib.nullcontext():
                time.sleep(WARM_UP_S)
                first, before_s = reader.read(), self.busy_s()
                time.sleep(SECONDS - WARM_UP_S - 0.2)
                last, after_s = reader.read(), self.busy_s()
            result = running.finish()
        assert (result.ended, result.errors) == ("finished", {})
        table = by_completion(rows.read_rows(run))
        period_ns = (last.middle_ns - first.middle_ns) // max(1, last.execution_count - first.execution_count)
        done_ns, _ = answered(table)
        start_ns, end_ns = (whole_batch_edge(done_ns, read.middle_ns, period_ns) for read in (first, last))
        taken = window(table, start_ns=start_ns, end_ns=end_ns, generator="locust", point=point, first=first, last=last)
        used = [server_cpu_cores(taken) or 0.0, client_cpu_cores(taken) or 0.0]
        used = used if self.cpus else [sum(used)]
        seconds = (last.middle_ns - first.middle_ns) / 1e9
        self.others = max(
            ((after - before) / seconds - own) / len(cores)
            for before, after, own, cores in zip(before_s, after_s, used, self.sides, strict=True)
        )
        return taken

    @property
    def sides(self) -> list[Sequence[int]]:
        """The cores of the server and those of the senders, or those that they share."""
        return [self.server.cpus, self.cpus] if self.cpus else [CORES]

    def busy_s(self) -> list[float]:
        return [machine_seconds(cores)[0] for cores in self.sides]

    def quiet_load(self, of: Target, *, concurrency: int, senders: int = 1, transport: Transport = "wire") -> Window:
        """A load that had the cores for itself, if that can be had in a few tries on a machine shared with others."""
        while True:
            taken = self.load(of, concurrency=concurrency, senders=senders, transport=transport)
            if self.others < OTHERS:
                return taken
            if self.spare:
                self.spare -= 1
                continue
            self.disturbed += 1
            if self.disturbed > MOST_DISTURBED:
                pytest.skip(f"other processes took {self.others:.0%} of the cores that are to be filled")
            return taken

    def settled(
        self, of: Target, *, concurrency: int, fills_cores: bool = False
    ) -> tuple[list[Window], SenderExperiment]:
        """The loads of as many senders as gain, and what one more came to; a gain is repeated before it is believed."""

        def sent(senders: int) -> Window:
            take = self.quiet_load if fills_cores else self.load
            return take(of, concurrency=concurrency, senders=senders)

        fewer = [sent(1)]
        for senders in range(2, MOST_SENDERS + 1):
            more = [sent(senders)]
            while (found := sender_experiment(fewer, more, own_cores=len(self.cpus))).convicts and len(more) < ROUNDS:
                fewer.append(sent(senders - 1))
                more.append(sent(senders))
            if not found.convicts:
                break
            fewer = more
        return fewer, found

    def payload_bytes(self) -> int:
        """What one request of the last load put on the wire."""
        return prepared.load(self.folder / f"load-{self.loads}" / "payload").request_bytes


def reasons_for(limit: str, found: Evidence, *, disturbed: int = 0) -> tuple[str, ...]:
    """Why that is the limit, as it must be; what else was found counts only if nobody disturbed the loads."""
    named, reasons = what_limits(found)
    if named != limit and disturbed:
        pytest.skip(f"other processes took the cores that are to be filled in {disturbed} loads: {reasons}")
    assert named == limit, (reasons, found)
    return tuple(reasons)


@contextlib.contextmanager
def slow(pids: Sequence[int]) -> Iterator[None]:
    """Stop each process for most of each turn, one after the other: a sender gets no more than its own time."""
    over = threading.Event()

    def turn(pid: int, phase: float) -> None:
        over.wait(phase * TURN_S)
        while not over.is_set():
            os.kill(pid, signal.SIGCONT)
            over.wait(RUNS_S)
            os.kill(pid, signal.SIGSTOP)
            over.wait(TURN_S - RUNS_S)
        os.kill(pid, signal.SIGCONT)

    threads = [threading.Thread(target=turn, args=(pid, i / len(pids))) for i, pid in enumerate(pids)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def served(out: Path, *of: Variant, also: Sequence[str] = (), cpus: tuple[int, ...] = ()) -> Iterator[Server]:
    for each in of:
        variants.build(each, out=out, repository=out / "repository", viewed=())
    names = [*(v.name for v in of), *also]
    server = embedded.start(names, out=out, repository=out / "repository", say=Say(quiet=True), cpus=cpus)
    try:
        yield server
    finally:
        assert server.pid is not None
        process = psutil.Process(server.pid)
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module", autouse=True)
def two_cores() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)  # which servers, senders and the statistics reader inherit
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Server and senders on the same cores, as they come."""
    out = tmp_path_factory.mktemp("shared")
    folder = out / "repository" / "two-steps"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(ENSEMBLE, encoding="utf-8")
    with served(out, MANY, SLEEP, HELD, LARGE, SMALL, BEFORE, LAST, also=["two-steps"]) as server:
        yield Bench(server, out)


@pytest.fixture(scope="module")
def apart_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The server on one core, the senders on another."""
    out = tmp_path_factory.mktemp("apart")
    with served(out, ONE, cpus=(CORES[0],)) as server:
        yield Bench(server, out, cpus=(CORES[1],))


@pytest.fixture
def shared(shared_server: Bench) -> Bench:
    return shared_server.afresh()


@pytest.fixture
def apart(apart_server: Bench) -> Bench:
    return apart_server.afresh()


def test_sleep_is_limited_by_the_engine(shared: Bench) -> None:
    of = shared.target(SLEEP.name, SLEEP)
    one, experiment = shared.settled(of, concurrency=8)
    found = of_point(one, max_batch=4, instances=1, experiment=experiment, server_cores=len(CORES))
    reasons = reasons_for("engine", found)
    assert "batches 4.0 of 4" in reasons[0]
    assert found.busy_share == pytest.approx(1.0, abs=0.1)


def test_a_queue_delay_with_half_a_batch_in_flight_is_limited_by_the_batcher(shared: Bench) -> None:
    of = shared.target(HELD.name, HELD)
    one, experiment = shared.settled(of, concurrency=4)
    found = of_point(one, max_batch=8, instances=1, experiment=experiment, server_cores=len(CORES))
    reasons = reasons_for("batcher", found)
    assert found.queue_ms == pytest.approx(50.0, abs=5.0)
    assert found.pause_ms == pytest.approx(50.0, abs=10.0)
    assert "batches 4.0 of 8" in reasons[0]


def test_null_pinned_apart_from_its_sender_is_limited_by_its_frontend(apart: Bench) -> None:
    of = apart.target(ONE.name, ONE)
    lower = apart.quiet_load(of, concurrency=16)
    one, experiment = apart.settled(of, concurrency=64, fills_cores=True)
    found = of_point(one, max_batch=8, instances=1, lower=[lower], experiment=experiment, server_cores=1.0)
    reasons = reasons_for("frontend", found, disturbed=apart.disturbed)
    assert "of its 1 cores" in reasons[0]


def test_null_with_a_sender_on_the_same_full_cores_is_limited_by_the_host(shared: Bench) -> None:
    of = shared.target(MANY.name, MANY)
    one, experiment = shared.settled(of, concurrency=64, fills_cores=True)
    found = of_point(one, max_batch=8, instances=4, experiment=experiment, server_cores=len(CORES))
    reasons = reasons_for("host", found, disturbed=shared.disturbed)
    assert "CPU-seconds a second: server" in reasons[0]


def test_an_image_of_fp32_numbers_is_limited_by_its_transfer(shared: Bench) -> None:
    of = shared.target(LARGE.name, LARGE)
    large, experiment = shared.settled(of, concurrency=16, fills_cores=True)
    on_wire = mean(w.items_per_s for w in large)
    request_bytes = shared.payload_bytes()
    copied = copy_rate(request_bytes)
    disturbed = shared.disturbed
    other_ways: tuple[tuple[str, Target, Transport], ...] = (
        ("with a quarter of the bytes", shared.target(SMALL.name, SMALL), "wire"),
        ("over shared memory", of, "shared_memory"),
    )
    for how, to, transport in other_ways:
        shared.afresh()
        other = shared.quiet_load(to, concurrency=16, transport=transport)
        found = of_point(
            large,
            max_batch=8,
            instances=1,
            experiment=experiment,
            transfer=TransferExperiment(gain=gain(on_wire, other.items_per_s), how=how),
            server_cores=len(CORES),
            request_bytes=request_bytes,
            loopback_bytes_per_s=copied,
        )
        reasons = reasons_for("transfer", found, disturbed=disturbed and shared.disturbed)  # both sides
        assert reasons[0].startswith(f"transfer: the same items {how} gained +")
        assert any(reason.startswith("payload ") and reason.endswith(" loopback copy") for reason in reasons)
    assert found.payload_bytes_per_s == pytest.approx(on_wire * 602_112, rel=0.01)  # and some headers
    assert copied is not None and on_wire * 602_112 < 2 * copied


def test_a_slowed_sender_is_the_limit_itself(shared: Bench) -> None:
    of = shared.target(SLEEP.name, SLEEP)
    one, more = (shared.load(of, concurrency=8, senders=senders, slowed=True) for senders in (1, 2))
    experiment = sender_experiment([one], [more])
    found = of_point([one], max_batch=4, instances=1, experiment=experiment, server_cores=len(CORES))
    reasons = reasons_for("client", found)
    assert "sent too slowly" in reasons[0]


def test_an_earlier_step_of_an_ensemble_is_preprocessing(shared: Bench) -> None:
    of = shared.target("two-steps")
    assert [step.model for step in of.steps] == [BEFORE.name, LAST.name]
    one, experiment = shared.settled(of, concurrency=32)
    found = of_point(one, max_batch=8, instances=1, experiment=experiment, server_cores=len(CORES))
    reasons = reasons_for("preprocessing", found)
    assert f"{BEFORE.name} busy" in reasons[0]
    before, last = found.steps
    assert before.busy_share == pytest.approx(1.0, abs=0.05)
    assert before.busy_share > 1.5 * last.busy_share
