"""gRPC against the real tritonserver: what senders, tritonclient and perf_analyzer count, and what Triton counts."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from brim import layout
from brim.errors import NotReady, UsageError
from brim.kserve import KServe
from brim.records import Access, KnownServer, LoadPoint, Sender, Server, ServingConfig, Status, Variant
from brim.say import Say
from loadtest import grpc_requests, payload, rows, sampling, target
from loadtest.control import Control, control
from loadtest.driver import LoadResult, LoadSpec
from loadtest.perf_analyzer_driver import PerfAnalyzerDriver, csv_file
from loadtest.perf_analyzer_output import csv_rate
from loadtest.sender_driver import SenderDriver
from serve import embedded, executions, known, ledger, variants
from tests.canary import CANARY, assert_nowhere, kept, seen_by_others, token
from tests.fake_grpc import GOOD, FakeGrpc
from tests.tls import Authority, Certificate, TlsProxy

pytestmark = pytest.mark.contract

SHM = Path("/dev/shm")
GRPC_SENDERS: tuple[Sender, ...] = ("grpc_aio", "tritonclient_grpc")
SENDERS: tuple[Sender, ...] = (*GRPC_SENDERS, "tritonclient_http")


def variant(model: KnownServer, **config: Any) -> Variant:
    return Variant(model=model, config=ServingConfig(name="c", engine="known", backend="python", **config))


NULL = variant(known.known_server("null", {}), max_batch=8)
SLEEP = replace(
    variant(known.known_server("sleep", {"service_ms": 20}), max_batch=8),
    config=ServingConfig(name="b8", engine="known", backend="python", max_batch=8),
)
SLOW = replace(
    variant(known.known_server("sleep", {"service_ms": 700}), max_batch=1),
    config=ServingConfig(name="slow", engine="known", backend="python", max_batch=1),
)
NARROW = variant(known.known_server("sleep", {"service_ms": 20}), max_batch=1, max_queue_size=2)
IMAGE = variant(known.known_server("image", {"pixels": 224}), max_batch=4)
ALL = (NULL, SLEEP, SLOW, NARROW, IMAGE)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    for each in ALL:
        variants.build(each, out=folder, repository=folder / "repository", viewed=())
    return folder


@pytest.fixture(scope="module")
def server(out: Path) -> Iterator[Server]:
    started = serve(out, *ALL)
    yield started
    end(started, signal.SIGTERM)


def serve(out: Path, *models: Variant) -> Server:
    return embedded.start([v.name for v in models], out=out, repository=out / "repository", say=Say(quiet=True))


def end(server: Server, how: signal.Signals) -> None:
    assert server.pid is not None
    with contextlib.suppress(psutil.NoSuchProcess):  # ended before
        process = psutil.Process(server.pid)
        process.send_signal(how)
        process.wait(20)


def url_of(server: Server, sender: Sender) -> str:
    url = server.http if sender == "tritonclient_http" else server.grpc
    assert url is not None
    return url


def spec_of(url: str, of: Variant, run: Path, sender: Sender = "grpc_aio", **changed: Any) -> LoadSpec:
    """A short load on one variant, prepared as the sender needs it."""
    protocol: Any = url.partition(":")[0].removesuffix("s")
    access = changed.get("access", Access())
    point: dict[str, Any] = {"concurrency": 8, "protocol": protocol, "sender": sender, **changed.pop("point", {})}
    told = target.describe(url, of.name, allowed={}, shapes={}, access=access)
    folder = payload.prepare(
        told, run / "payload", items_per_request=point.get("items_per_request", 1), seed=1,
        input_data=changed.pop("input_data", None),
        protocol=protocol, compression=point.get("compression", "none"),
    )  # fmt: skip
    usual: dict[str, Any] = {
        "url": url, "model": of.name, "version": "", "point": LoadPoint(**point), "payload": str(folder),
        "folder": str(run / "raw"), "rows": str(run / "requests"), "first_worker": 0, "seconds": 0.6,
        "timeout_s": 10.0, "drain_s": 5.0, "samples": 0,
    }  # fmt: skip
    return LoadSpec(**{**usual, **changed})


def loaded(spec: LoadSpec) -> LoadResult:
    return SenderDriver().start(spec, Path(spec.folder)).finish()


def at_once(specs: Mapping[Sender, LoadSpec]) -> dict[Sender, LoadResult]:
    """Each sender's load, side by side: starting the processes is most of the time that they take."""
    with futures.ThreadPoolExecutor() as pool:
        return dict(zip(specs, pool.map(loaded, specs.values()), strict=True))


def statuses(run: Path) -> Counter[int]:
    return Counter(rows.read_rows(run)["status"].tolist())


def counts(result: LoadResult) -> dict[int, int]:
    every = (result.ok, result.rejected, result.timed_out, result.failed, result.cancelled)
    return {int(status): n for status, n in zip(Status, every, strict=True) if n}


def assert_adds_up(result: LoadResult, run: Path) -> None:
    """The accounting identity, and the rows say the same."""
    assert result.sent == sum(counts(result).values())
    assert counts(result) == dict(statuses(run))


# ---------------------------------------------------------------------------- what the target says


def test_a_target_is_described_alike_over_grpc_and_http(server: Server) -> None:
    for each in ALL:
        over = [
            target.describe(str(url), each.name, allowed={}, variant=each, shapes={})
            for url in (server.http, server.grpc)
        ]
        assert over[0] == replace(over[1], url=over[0].url)


def test_every_question_has_the_same_answer_over_grpc_and_http(server: Server) -> None:
    questions: list[Callable[[Control], object]] = [
        lambda c: c.metadata(),
        lambda c: c.model_ready(SLEEP.name),
        lambda c: c.model_ready("nope"),
        lambda c: c.model_metadata(SLEEP.name),
        lambda c: c.model_config(SLEEP.name),
        lambda c: c.statistics(SLOW.name),
        lambda c: c.repository_index(),
        lambda c: c.shared_memory("system"),
    ]
    over_http, over_grpc = (control(str(url), {}, Access()) for url in (server.http, server.grpc))
    for ask in questions:
        assert ask(over_http) == ask(over_grpc)


def test_a_model_that_is_not_there_is_told_in_the_servers_words(server: Server) -> None:
    with pytest.raises(NotReady, match="unknown model: 'nope'"):
        control(str(server.grpc), {}, Access()).model_metadata("nope")
    with pytest.raises(NotReady, match="has no model 'sleep__b9'; did you mean 'sleep__b8'"):
        target.describe(str(server.grpc), "sleep__b9", allowed={}, shapes={})


def test_http_where_grpc_is_spoken_is_not_ready_within_seconds(server: Server) -> None:
    began = time.monotonic()
    with pytest.raises(NotReady, match="grpc://"):
        control(server.http.replace("http:", "grpc:"), {}, Access()).metadata()
    assert time.monotonic() - began < 10


# ---------------------------------------------------------------------------- what the senders count


def test_items_counted_by_the_senders_are_those_counted_by_triton(server: Server, tmp_path: Path) -> None:
    ask = KServe(server.http)
    before = ask.statistics(NULL.name)["inference_count"]
    specs = {}
    for sender in SENDERS:
        point = {"items_per_request": 2, "senders": 2 if sender == "grpc_aio" else 1, "concurrency": 7}
        run = tmp_path / sender
        specs[sender] = spec_of(url_of(server, sender), NULL, run, sender, point=point, samples=8, channels=2)
    results = at_once(specs)
    assert sum(r.items_ok for r in results.values()) == ask.statistics(NULL.name)["inference_count"] - before
    for sender, result in results.items():
        assert (result.ended, result.errors, result.sent, result.reason) == ("finished", {}, result.ok, "")
        assert result.items_ok == 2 * result.ok > 0
        assert_adds_up(result, tmp_path / sender)
        found = target.describe(specs[sender].url, NULL.name, allowed={}, shapes={})
        sampled = sampling.read_outputs(found, result.samples, tmp_path / sender / "raw")
        assert sampled
        for number, outputs in sampled:
            sent = payload.read_inputs(tmp_path / sender / "payload", number)["INPUT"]
            assert np.array_equal(outputs["OUTPUT"], sent)


def test_large_requests_arrive_whole_through_the_other_sides_windows(server: Server, tmp_path: Path) -> None:
    spec = spec_of(str(server.grpc), IMAGE, tmp_path, point={"concurrency": 4, "items_per_request": 4}, samples=4,
                   seconds=0.4)  # fmt: skip
    result = loaded(spec)  # 2.4 MB a request, of which a connection takes 64 KiB at first
    assert (result.errors, result.ok > 0, result.sent) == ({}, True, result.ok)
    found = target.describe(spec.url, IMAGE.name, allowed={}, shapes={})
    for number, outputs in sampling.read_outputs(found, result.samples, tmp_path / "raw"):
        sent = payload.read_inputs(tmp_path / "payload", number)["INPUT"]
        assert np.allclose(outputs["OUTPUT"].reshape(4), sent[:, :, 0, 0].sum(axis=1))


def test_rows_lie_within_the_executions_that_the_server_logged(server: Server, out: Path, tmp_path: Path) -> None:
    result = loaded(spec_of(str(server.grpc), SLEEP, tmp_path, point={"concurrency": 16}, seconds=1.2))
    log = [e for e in executions.read_executions(layout.server_folder(out, server.id), SLEEP.name)
           if e[0] > result.start_ns]  # fmt: skip
    assert sum(items for _, _, items in log) == result.ok == result.sent
    found = rows.read_rows(tmp_path)
    ends = np.array([e[1] for e in log])
    after = found["done_ns"] - ends[np.searchsorted(ends, found["done_ns"]) - 1]
    # An answer is seen a millisecond or two after its batch has ended; a clock of another kind would be seconds away.
    assert 0 < np.median(after) < 10e6
    # 16 in flight keep full batches of 8: the rows and the log have the same rate over the same stretch of it
    first, last = ends[2], ends[-3]
    done = int(((found["done_ns"] > first) & (found["done_ns"] <= last)).sum())
    served = sum(items for _, end_ns, items in log if first < end_ns <= last)
    assert served > 50
    assert abs(done - served) <= 16  # those whose batch ended at either edge


def test_a_full_queue_is_a_rejection_and_not_an_error(server: Server, tmp_path: Path) -> None:
    point = {"concurrency": 6}
    specs = {s: spec_of(url_of(server, s), NARROW, tmp_path / s, s, point=point, seconds=0.5) for s in SENDERS}
    for sender, result in at_once(specs).items():
        assert result.rejected > 0
        assert result.ok + result.rejected + result.cancelled == result.sent
        assert [text for text in result.errors if "Exceeds maximum queue size" not in text] == []
        assert_adds_up(result, tmp_path / sender)


def test_a_request_that_takes_too_long_is_censored_at_its_deadline(server: Server, tmp_path: Path) -> None:
    point = {"concurrency": 2}
    specs = {s: spec_of(url_of(server, s), SLOW, tmp_path / s, s, point=point, timeout_s=0.3) for s in SENDERS}
    for sender, result in at_once(specs).items():
        assert counts(result) == {int(Status.TIMED_OUT): result.sent}
        assert result.errors == {"no answer within 0.3 s": result.sent}
        found = rows.read_rows(tmp_path / sender)
        taken_s = (found["done_ns"] - found["sent_ns"]) / 1e9
        assert taken_s.min() >= 0.3
        assert np.median(taken_s) < 0.5 and taken_s.max() < 2.0


def test_what_is_in_flight_when_the_drain_is_over_is_cancelled(server: Server, tmp_path: Path) -> None:
    result = loaded(spec_of(str(server.grpc), SLOW, tmp_path, point={"concurrency": 4}, seconds=0.2, drain_s=0.1))
    assert counts(result)[int(Status.CANCELLED)] >= 3
    assert_adds_up(result, tmp_path)


def test_stopped_senders_drain_and_say_so(server: Server, tmp_path: Path) -> None:
    load = SenderDriver().start(spec_of(str(server.grpc), SLEEP, tmp_path, seconds=30.0), tmp_path / "raw")
    until(lambda: (tmp_path / "requests" / "0.bin").stat().st_size > 1000)
    load.stop()
    result = load.finish()
    assert (result.ended, result.errors) == ("stopped", {})
    assert result.sent == result.ok
    assert_adds_up(result, tmp_path)


def test_a_server_that_is_killed_in_the_middle_is_lost_and_its_rows_are_kept(out: Path, tmp_path: Path) -> None:
    server = serve(out, NULL)
    try:
        specs = {s: spec_of(url_of(server, s), NULL, tmp_path / s, s, seconds=30.0) for s in SENDERS}
        with futures.ThreadPoolExecutor() as pool:
            loads = pool.submit(at_once, specs)
            files = [tmp_path / s / "requests" / "0.bin" for s in SENDERS]
            until(lambda: loads.done() or all(f.exists() and f.stat().st_size > 1000 for f in files))
            end(server, signal.SIGKILL)
            killed = time.monotonic()
            results = loads.result()
            assert time.monotonic() - killed < 20
    finally:
        ledger.stop(server, out)  # a killed server leaves its stub and its shared memory behind
    for sender, result in results.items():
        assert (result.ended, result.ok > 0) == ("server_lost", True)
        assert "refused" in result.reason.lower()
        assert_adds_up(result, tmp_path / sender)


def until(true: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


# ---------------------------------------------------------------------------- answers that are not good; secrets; TLS

ANSWERS = {
    "wrong shape": grpc_requests.answer([("OUTPUT", "FP32", (16, 1), bytes(64))]),
    "wrong dtype": grpc_requests.answer([("OUTPUT", "INT32", (1, 16), bytes(64))]),
    "short": grpc_requests.answer([("OUTPUT", "FP32", (1, 16), bytes(60))]),
    "garbage": b"\xff" * len(GOOD),
    "empty": b"",
}


def test_answers_unlike_the_promise_are_failures_by_their_kind(server: Server, tmp_path: Path) -> None:
    spec = spec_of(str(server.grpc), NULL, tmp_path, point={"concurrency": 1}, seconds=0.5)
    with FakeGrpc([GOOD, *ANSWERS.values()]) as fake:
        result = loaded(replace(spec, url=fake.url))
    assert result.sent == fake.asked == result.ok + result.failed
    assert result.ok == pytest.approx(result.sent / 6, abs=1)
    assert {text.partition(" (")[0][:25] for text in result.errors} >= {
        "protocol: output OUTPUT h", "protocol: output OUTPUT i", "protocol: no ModelInferRe",
    }  # fmt: skip
    assert_adds_up(result, tmp_path)


@pytest.mark.parametrize("sender", GRPC_SENDERS)
def test_a_header_travels_as_metadata_and_into_nothing_that_is_kept(
    server: Server, tmp_path: Path, sender: Sender, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server repeats it, in its errors and as the name of an output."""
    access = Access(headers={"Authorization": str(token(tmp_path))})
    spec = spec_of(str(server.grpc), NULL, tmp_path / "run", sender, point={"concurrency": 2}, seconds=0.3)
    with FakeGrpc([GOOD], echo=True) as fake:
        load = SenderDriver().start(replace(spec, url=fake.url, access=access), tmp_path / "run" / "raw")
        seen = seen_by_others(load.pids)
        result = load.finish()
        with pytest.raises(NotReady, match=r"who is \[redacted\]") as refused:
            control(fake.url, {}, access).model_metadata("any")
    assert {m["authorization"] for m in fake.metadata} == {f"Bearer {CANARY}"}
    third = pytest.approx(result.sent / 3, abs=2)
    named = {"protocol: output [redacted] was not asked for": third}  # tritonclient looks only for what was asked for
    assert result.errors == {"UNKNOWN: who is [redacted]?": third, **(named if sender == "grpc_aio" else {})}
    assert result.ok > 0
    assert_nowhere([*kept(tmp_path), *seen, "".join(capfd.readouterr()).encode(), str(refused.value).encode()])


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


def test_inside_tls_a_name_is_held_against_the_certificate(
    server: Server, tmp_path: Path, authority: Authority
) -> None:
    access = Access(tls_ca=str(authority.own.cert))
    with tls_proxy(server, authority.server()) as proxy:
        url = f"grpcs://localhost:{proxy.port}"
        specs = {s: spec_of(url, NULL, tmp_path / s, s, access=access, seconds=0.3) for s in GRPC_SENDERS}
        for result in at_once(specs).values():
            assert (result.errors, result.ok > 0, result.sent) == ({}, True, result.ok)
        with pytest.raises(NotReady, match="authority of the server's certificate is unknown"):
            target.describe(url, NULL.name, allowed={}, shapes={})


def test_a_server_without_http2_inside_tls_is_told_from_one_with_it(
    server: Server, tmp_path: Path, authority: Authority
) -> None:
    access = Access(tls_ca=str(authority.own.cert))
    spec = spec_of(str(server.grpc), NULL, tmp_path)
    with TlsProxy(int(server.http.rpartition(":")[2]), authority.server()) as proxy:
        url = f"grpcs://localhost:{proxy.port}"
        with pytest.raises(NotReady, match="offers no HTTP/2 inside TLS"):
            control(url, {}, access).metadata()
        with pytest.raises(NotReady, match="offers no HTTP/2 inside TLS"):
            loaded(replace(spec, url=url, access=access))


def test_gzip_is_what_the_server_is_sent(server: Server, tmp_path: Path, authority: Authority) -> None:
    """The images are zeros, 602 kB each; what goes to the server is counted where TLS ends."""
    blank = tmp_path / "blank"
    blank.mkdir()
    np.save(blank / "INPUT.npy", np.zeros((1, 3, 224, 224), np.float32))
    access = Access(tls_ca=str(authority.own.cert))
    point = {"compression": "gzip", "concurrency": 2}
    with contextlib.ExitStack() as stack:
        specs, proxies = {}, {}
        for sender in SENDERS:
            backend = int(url_of(server, sender).rpartition(":")[2])
            proxies[sender] = proxy = TlsProxy(backend, authority.server())
            if sender in GRPC_SENDERS:
                proxy.context.set_alpn_protocols(["h2"])
            stack.enter_context(proxy)
            url = f"{'https' if sender == 'tritonclient_http' else 'grpcs'}://localhost:{proxy.port}"
            specs[sender] = spec_of(
                url, IMAGE, tmp_path / sender, sender, point=point, access=access, input_data=str(blank), seconds=0.4
            )
        for sender, result in at_once(specs).items():
            assert (result.errors, result.sent, result.ok > 0) == ({}, result.ok, True)
            assert proxies[sender].forwarded / result.sent < 60_000


def tls_proxy(server: Server, certificate: Certificate) -> TlsProxy:
    proxy = TlsProxy(int(str(server.grpc).rpartition(":")[2]), certificate)
    proxy.context.set_alpn_protocols(["h2"])
    return proxy


# ---------------------------------------------------------------------------- perf_analyzer


def test_perf_analyzers_rows_over_grpc_agree_with_its_csv_and_with_triton(
    server: Server, out: Path, tmp_path: Path
) -> None:
    before = KServe(server.http).statistics(SLEEP.name)["inference_count"]
    spec = spec_of(str(server.grpc), SLEEP, tmp_path, "perf_analyzer", point={"concurrency": 16}, seconds=2.0)
    result = PerfAnalyzerDriver().start(spec, tmp_path / "raw").finish()
    assert (result.ended, result.reason, result.errors) == ("finished", "", {})
    assert result.sent == result.ok == KServe(server.http).statistics(SLEEP.name)["inference_count"] - before
    done_s = np.sort(rows.read_rows(tmp_path)["done_ns"]) / 1e9
    rate = (len(done_s) - 16) / (done_s[-1] - done_s[15])
    told = csv_rate(csv_file(tmp_path / "raw").read_text(), 16)
    assert told == pytest.approx(rate, rel=0.15)  # of its own windows, not of our stretch of the load


def test_perf_analyzer_goes_through_tls_and_refuses_where_the_certificate_lacks_the_address(
    server: Server, tmp_path: Path, authority: Authority
) -> None:
    access = Access(tls_ca=str(authority.own.cert))
    with tls_proxy(server, authority.server()) as proxy:
        url = f"grpcs://localhost:{proxy.port}"
        spec = spec_of(url, SLEEP, tmp_path / "a", "perf_analyzer", access=access, seconds=1.0)
        result = PerfAnalyzerDriver().start(spec, tmp_path / "a" / "raw").finish()
        assert (result.ended, result.errors, result.ok > 0) == ("finished", {}, True)
    with tls_proxy(server, authority.server("name_only")) as proxy:
        url = f"grpcs://localhost:{proxy.port}"
        spec = spec_of(url, SLEEP, tmp_path / "b", "perf_analyzer", access=access)
        with pytest.raises(UsageError, match=r"not for 127\.0\.0\.1.*leave the cross-check out"):
            PerfAnalyzerDriver().start(spec, tmp_path / "b" / "raw")


def test_perf_analyzer_over_shared_memory_leaves_none_behind_and_refuses_where_others_have_theirs(
    server: Server, tmp_path: Path
) -> None:
    ask = control(str(server.grpc), {}, Access())
    spec = spec_of(
        str(server.grpc), SLEEP, tmp_path, "perf_analyzer", point={"transport": "shared_memory"}, seconds=1.0
    )
    before = set(SHM.iterdir())
    result = PerfAnalyzerDriver().start(spec, tmp_path / "raw").finish()
    assert (result.ended, result.reason, result.errors, result.ok > 0) == ("finished", "", {}, True)
    strangers = SHM / f"brim-test-{os.getpid()}"
    strangers.write_bytes(bytes(64))
    try:
        ask.register_shared_memory("system", "theirs", {"key": f"/{strangers.name}", "offset": 0, "byte_size": 64})
        with pytest.raises(UsageError, match="others use on this server .theirs."):
            PerfAnalyzerDriver().start(spec, tmp_path / "again")
        assert ask.shared_memory("system") == ["theirs"]
    finally:
        ask.unregister_shared_memory("system", "theirs")
        strangers.unlink()
    left = {file.name for file in set(SHM.iterdir()) - before if file.name.startswith(("INPUT", "OUTPUT"))}
    assert left == set()


def test_a_perf_analyzer_that_is_stopped_over_shared_memory_is_tidied_up_after(server: Server, tmp_path: Path) -> None:
    spec = spec_of(
        str(server.grpc), SLEEP, tmp_path, "perf_analyzer", point={"transport": "shared_memory"}, seconds=30.0
    )
    load = PerfAnalyzerDriver().start(spec, tmp_path / "raw")
    ask = control(str(server.grpc), {}, Access())
    until(lambda: "OUTPUT" in ask.shared_memory("system") or not load.running())
    load.stop()
    result = load.finish()
    assert result.ended == "stopped"
    assert ask.shared_memory("system") == []
    assert [file.name for file in SHM.iterdir() if file.name.startswith(("INPUT", "OUTPUT"))] == []
