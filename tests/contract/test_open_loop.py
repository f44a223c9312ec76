"""Open loop in real child processes: against a server of known behaviour, and against a Triton that counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from brim import disk, layout
from brim.kserve import KServe
from brim.records import LoadPoint, Sender, ServingConfig, Status, Variant
from brim.say import Say
from judging.edges import Nanoseconds
from judging.rows import Rows
from loadtest import payload, rows, target
from loadtest.driver import LoadResult, LoadSpec, RunningLoad
from loadtest.sender_driver import SenderDriver
from loadtest.senders.tally import result_file
from serve import embedded, executions, known, variants
from tests.fakes import FakeServer

pytestmark = pytest.mark.contract

MS = 1_000_000
SECOND = 1_000 * MS
SENDERS: tuple[Sender, ...] = ("locust_http", "grpc_aio", "tritonclient_http", "tritonclient_grpc")


def constant(rate_per_s: float, seconds: float) -> Nanoseconds:
    return np.arange(round(rate_per_s * seconds), dtype=np.int64) * round(SECOND / rate_per_s)


def poisson(rate_per_s: float, seconds: float) -> Nanoseconds:
    """Exactly rate × seconds arrivals, uniform over the time: what Poisson arrivals are, given their number."""
    return np.sort(np.random.default_rng(4).integers(0, round(seconds * SECOND), round(rate_per_s * seconds)))


def spec_of(server: FakeServer, run: Path, offsets_ns: Nanoseconds, **changed: Any) -> LoadSpec:
    """A load of these arrivals on the fake server by one process with 32 slots, unless changed."""
    described = target.describe(server.url, server.model, allowed={}, shapes={})
    folder = payload.prepare(described, run / "payload", items_per_request=1, input_data=None, seed=1)
    return _spec(server.url, server.model, folder, run, offsets_ns, **changed)


def _spec(url: str, model: str, folder: Path, run: Path, offsets_ns: Nanoseconds, **changed: Any) -> LoadSpec:
    np.save(run / "schedule.npy", offsets_ns)
    point: dict[str, Any] = {"mode": "open", "rate_per_s": 100.0, "arrivals": "trace", "outstanding": 32}
    usual: dict[str, Any] = {
        "url": url, "model": model, "version": "", "point": LoadPoint(**{**point, **changed.pop("point", {})}),
        "payload": str(folder), "folder": str(run / "raw"), "rows": str(run / "requests"), "first_worker": 0,
        "seconds": 20.0, "timeout_s": 5.0, "drain_s": 5.0, "samples": 0, "arrivals": str(run / "schedule.npy"),
    }  # fmt: skip
    return LoadSpec(**{**usual, **changed})


def start(spec: LoadSpec) -> RunningLoad:
    return SenderDriver().start(spec, Path(spec.folder))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The requests of a load in the order in which they were intended, in ns from its start."""

    intended: Nanoseconds
    sent: Nanoseconds
    done: Nanoseconds
    worker: npt.NDArray[np.uint16]
    status: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.intended)


def sent_rows(run: Path, result: LoadResult) -> Sent:
    """What the rows say; as many as the result counts, each sent when it was due or later."""
    found = np.sort(rows.read_rows(run), order=["intended_ns", "sent_ns"]).view(Rows)
    intended, sent, done = (found[name] - result.start_ns for name in ("intended_ns", "sent_ns", "done_ns"))
    assert result.sent == len(found)
    assert (intended <= sent).all() and (sent <= done).all()
    return Sent(intended=intended, sent=sent, done=done, worker=found["worker"], status=found["status"])


def until(true: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def test_every_arrival_is_sent_once_when_it_is_due_and_the_load_ends_with_the_last_answer(tmp_path: Path) -> None:
    offsets = poisson(300, 1.5)
    with FakeServer(service_s=0.002) as server:
        result = start(spec_of(server, tmp_path, offsets, point={"senders": 2, "outstanding": 33})).finish()
        assert len(server.log) == len(offsets)
        assert server.connections < 33  # those which were idle last are used again
    sent = sent_rows(tmp_path, result)
    assert sent.intended.tolist() == offsets.tolist()
    assert (result.ended, result.ok, result.unsent) == ("finished", len(offsets), 0)
    assert (result.end_ns - result.start_ns) / 1e9 < 10  # of the 20 s that it might have taken
    for worker in (0, 1):
        assert np.sort(sent.intended[sent.worker == worker]).tolist() == offsets[worker::2].tolist()
        assert disk.load(LoadResult, result_file(tmp_path / "raw", worker)).start_ns == result.start_ns
    assert np.median(sent.sent - sent.intended) < 10 * MS


def test_a_stall_is_in_the_latencies_from_the_intended_instant_and_not_in_those_from_sending(tmp_path: Path) -> None:
    """D = 1 s of T = 3 s: a third of the latencies from the intended instant is uniform on (0, 1 s)."""
    frozen_s = []

    def freeze_once(ordinal: int) -> Any:
        if ordinal == 150:
            began_s = time.monotonic()
            time.sleep(1.0)  # the stall itself, in the server's own loop: nobody is answered meanwhile
            frozen_s.append(time.monotonic() - began_s)
        return ""

    with FakeServer(fault=freeze_once) as server:
        result = start(spec_of(server, tmp_path, constant(200, 3), point={"outstanding": 4})).finish()
    sent = sent_rows(tmp_path, result)
    from_intended, from_sent = (sent.done - sent.intended) / SECOND, (sent.done - sent.sent) / SECOND
    assert (result.ok, result.unsent) == (600, 0)
    assert (from_sent > 0.5).sum() <= 4  # one for each slot
    stalled = np.sort(from_intended[from_intended > 0.2])
    assert len(stalled) / 600 == pytest.approx((frozen_s[0] - 0.2) / 3, rel=0.3)
    assert np.abs(stalled - np.linspace(0.2, frozen_s[0], len(stalled))).max() < 0.2


def test_beyond_its_slots_a_load_waits_and_what_never_was_sent_is_counted(tmp_path: Path) -> None:
    offsets = constant(200, 2)
    with FakeServer(service_s=0.05) as server:
        result = start(spec_of(server, tmp_path, offsets, seconds=1.5, point={"outstanding": 2})).finish()
    sent = sent_rows(tmp_path, result)
    assert sent.intended.tolist() == offsets[: len(sent)].tolist()
    assert 20 < len(sent) <= 62  # two at a time, 50 ms each or longer
    assert result.unsent == 300 - len(sent)  # nothing counts that was due later
    # Never more than two in flight: each is sent when the one before the one before it is done.
    assert (np.sort(sent.sent)[2:] >= np.sort(sent.done)[:-2]).all()


def test_a_rate_that_no_client_can_send_shows_in_the_unsent_and_takes_no_memory(tmp_path: Path) -> None:
    offsets = constant(1_000_000, 4)
    with FakeServer() as server:
        load = start(spec_of(server, tmp_path, offsets, seconds=4.0))
        process, rows_file = psutil.Process(load.pids[0]), tmp_path / "requests" / "0.bin"
        until(lambda: rows_file.stat().st_size > 10_000)
        before, written = process.memory_info().rss, rows_file.stat().st_size
        until(lambda: rows_file.stat().st_size > written + 10_000)  # some 300 requests later, and many more due
        grown = process.memory_info().rss - before
        result = load.finish()
    assert result.sent > 500
    assert result.sent + result.unsent == len(offsets)
    assert grown < 8 * 2**20


def test_a_load_that_is_stopped_counts_what_was_due_until_then(tmp_path: Path) -> None:
    offsets = constant(400, 5)
    with FakeServer(service_s=0.05) as server:
        load = start(spec_of(server, tmp_path, offsets, point={"outstanding": 4}))
        until(lambda: len(server.log) > 40)
        asked_ns = time.monotonic_ns()
        load.stop()
        result = load.finish()
    sent = sent_rows(tmp_path, result)
    assert (result.ended, result.ok, result.failed) == ("stopped", len(sent), 0)  # what was in flight was waited for
    due = [int(np.searchsorted(offsets, at - result.start_ns, "right")) for at in (asked_ns, asked_ns + SECOND)]
    assert due[0] <= result.sent + result.unsent <= due[1] < len(offsets)
    assert sent.sent.max() < asked_ns + SECOND - result.start_ns


def test_the_deadline_counts_from_sending_and_who_misses_it_delays_nobody_else(tmp_path: Path) -> None:
    offsets = constant(100, 1)
    with FakeServer(fault=lambda ordinal: "never" if ordinal % 10 == 3 else "") as server:
        result = start(spec_of(server, tmp_path, offsets, timeout_s=0.4)).finish()
    sent = sent_rows(tmp_path, result)
    censored = (sent.done - sent.sent)[sent.status == Status.TIMED_OUT]
    assert (len(censored), result.ok, result.unsent) == (10, 90, 0)
    assert 400 * MS <= censored.min() <= np.median(censored) < 800 * MS
    assert sent.intended.tolist() == offsets.tolist()
    assert np.median(sent.sent - sent.intended) < 50 * MS


def test_a_server_that_is_gone_ends_the_load_though_most_slots_have_nothing_to_do(tmp_path: Path) -> None:
    with FakeServer() as server:
        load = start(spec_of(server, tmp_path, constant(20, 15), point={"outstanding": 64}))
        until(lambda: len(server.log) > 5)
        server.stop()
        gone = time.monotonic()
        result = load.finish()
    assert result.ended == "server_lost"
    assert time.monotonic() - gone < 10  # of 15 s
    assert result.sent + result.unsent < 250


SLEEP = Variant(
    model=known.known_server("sleep", {"service_ms": 10}),
    config=ServingConfig(name="b8", engine="known", backend="python", max_batch=8),
)


def test_every_sender_keeps_the_rate_and_counts_what_triton_counts(tmp_path: Path) -> None:
    variants.build(SLEEP, out=tmp_path, repository=tmp_path / "repository", viewed=())
    server = embedded.start([SLEEP.name], out=tmp_path, repository=tmp_path / "repository", say=Say(quiet=True))
    try:
        asked = KServe(server.http)
        before = _inferred(asked)
        specs = {sender: _triton_spec(server, tmp_path, sender) for sender in SENDERS}
        with futures.ThreadPoolExecutor() as pool:
            results = dict(zip(SENDERS, pool.map(lambda s: start(specs[s]).finish(), SENDERS), strict=True))
        inferred = _inferred(asked) - before
        logged = executions.read_executions(layout.server_folder(tmp_path, server.id), SLEEP.name)
    finally:
        assert server.pid is not None
        process = psutil.Process(server.pid)
        process.terminate()
        process.wait(20)
    for sender, result in results.items():  # four at once, on whatever cores there are
        sent = sent_rows(tmp_path / sender, result)
        assert (result.ok, result.unsent, result.errors) == (300, 0, {}), sender
        assert sent.intended.tolist() == poisson(100, 3).tolist()
        span = (sent.sent.max() - sent.sent.min()) / (sent.intended.max() - sent.intended.min())
        assert span == pytest.approx(1, abs=0.1), sender
    assert inferred == sum(r.ok for r in results.values())
    starts = [r.start_ns for r in results.values()]
    assert sum(items for at, _, items in logged if at > min(starts)) == inferred


def _inferred(server: KServe) -> int:
    return int(server.statistics(SLEEP.name)["inference_count"])


def _triton_spec(server: Any, out: Path, sender: Sender) -> LoadSpec:
    """300 arrivals in 3 s over the sender's own protocol."""
    run = out / sender
    protocol: Any = "grpc" if "grpc" in sender else "http"
    url = server.grpc if protocol == "grpc" else server.http
    described = target.describe(url, SLEEP.name, allowed={}, shapes={})
    folder = payload.prepare(
        described, run / "payload", items_per_request=1, input_data=None, seed=1, protocol=protocol
    )
    spec = _spec(url, SLEEP.name, folder, run, poisson(100, 3))
    return replace(spec, point=replace(spec.point, sender=sender, protocol=protocol))
