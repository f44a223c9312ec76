"""Queue limits on the real tritonserver: what it rejects and why, counted apart; a second server beside the first."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from brim import layout
from brim.kserve import KServe
from brim.records import Access, LoadPoint, Protocol, Server, ServingConfig, Slo, Status, Target, Variant
from brim.say import Say
from experiments.measure import targets
from experiments.overload.beside import served_beside
from experiments.overload.run import Sent
from judging.overload import goodput
from judging.queue_limits import Limits
from judging.slo_observed import Observed
from judging.windows import by_completion
from loadtest import payload, rows
from loadtest.driver import LoadSpec
from loadtest.sender_driver import SenderDriver
from queueing.arrivals import constant
from serve import embedded, known, ledger, variants

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(not layout.tools_manifest().exists(), reason="no .tools/: `make serve` sets them up"),
]

#: 25 ms a batch of 4: about 155 a second with what Triton takes between two batches.
SERVICE_MS, MAX_BATCH = 25.0, 4
#: Twice that; 30 ms and the batch that is running take more than a queue of 10 holds, so that both limits are met.
RATE, SECONDS = 320.0, 1.5
TIMEOUT, BOTH = Limits(queue_timeout_us=30_000), Limits(max_queue_size=10, queue_timeout_us=30_000)
SLO = Slo(limit_ms=200)


def variant(name: str, limits: Limits) -> Variant:
    config = ServingConfig(
        name=name, engine="known", backend="python", max_batch=MAX_BATCH, max_queue_size=limits.max_queue_size,
        queue_timeout_us=limits.queue_timeout_us,
    )  # fmt: skip
    return Variant(model=known.known_server("sleep", {"service_ms": SERVICE_MS}), config=config)


VARIANTS = {limits: variant(name, limits) for name, limits in (("b4", Limits()), ("timed", TIMEOUT), ("both", BOTH))}


@dataclass(frozen=True, kw_only=True)
class Bench:
    out: Path
    server: Server

    def target(self, limits: Limits, protocol: Protocol = "http") -> Target:
        url = self.server.grpc if protocol == "grpc" else self.server.http
        wanted = targets.Wanted(model=VARIANTS[limits].name, url=url or "", server=self.server)
        return targets.describe(wanted, {}, {}, Access())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    out = tmp_path_factory.mktemp("overload")
    for each in VARIANTS.values():
        variants.build(each, out=out, repository=out / "repository", viewed=())
    names = [each.name for each in VARIANTS.values()]
    server = embedded.start(names, out=out, repository=out / "repository", say=Say(quiet=True))
    yield Bench(out=out, server=server)
    ledger.stop(server, out)


def loaded(target: Target, protocol: Protocol, run: Path) -> Sent:
    """What the target does with twice of what it can."""
    offsets_ns = constant(RATE, SECONDS)
    run.mkdir()
    np.save(run / "arrivals.npy", offsets_ns)
    pool = payload.prepare(target, run / "payload", items_per_request=1, input_data=None, seed=1, protocol=protocol)
    point = LoadPoint(
        mode="open", rate_per_s=RATE, arrivals="constant", outstanding=512, protocol=protocol,
        sender="grpc_aio" if protocol == "grpc" else "locust_http",
    )  # fmt: skip
    spec = LoadSpec(
        url=target.url, model=target.model, version="", point=point, payload=str(pool), folder=str(run / "raw"),
        rows=str(run / "requests"), first_worker=0, seconds=SECONDS, timeout_s=10.0, drain_s=10.0, samples=0,
        arrivals=str(run / "arrivals.npy"),
    )  # fmt: skip
    result = SenderDriver().start(spec, run / "raw").finish()
    assert (result.ended, result.unsent) == ("finished", 0)
    seen = Observed(
        rows=by_completion(rows.read_rows(run)), offsets_ns=offsets_ns, start_ns=result.start_ns, end_ns=result.end_ns,
        load=0,
    )  # fmt: skip
    return Sent(seen=seen, errors=result.errors)


def expired_by(server: Server, model: str) -> int:
    """Triton's own counter: of requests that its queue let in. What met a full queue, it counts nowhere."""
    with urllib.request.urlopen(str(server.metrics), timeout=5) as answer:
        page = answer.read().decode()
    found = re.search(rf'nv_inference_request_failure{{model="{model}",reason="REJECTED"[^}}]*}} (\d+)', page)
    assert found is not None, page
    return int(found[1])


@pytest.mark.parametrize(
    ("limits", "protocol"), [(TIMEOUT, "grpc"), (BOTH, "http")], ids=["timeout", "queue size and timeout"]
)
def test_a_full_queue_and_a_wait_that_was_too_long_are_counted_apart_and_as_triton_does(
    bench: Bench, limits: Limits, protocol: Protocol, tmp_path: Path
) -> None:
    target = bench.target(limits, protocol)
    before = expired_by(bench.server, target.model)

    sent = loaded(target, protocol, tmp_path / "run")

    whole = goodput(sent.seen, sent.errors, SLO, policy="", from_s=0.0, until_s=SECONDS)
    refused = int((sent.seen.rows["status"] == Status.REJECTED).sum())
    assert whole.expired * SECONDS == pytest.approx(expired_by(bench.server, target.model) - before)
    assert (whole.rejected + whole.expired) * SECONDS == pytest.approx(refused)
    assert refused == sum(sent.errors.values()) > 0.3 * RATE * SECONDS
    assert (whole.rejected > 0, whole.expired > 0) == (limits is BOTH, True)
    assert whole.good + whole.rejected + whole.expired == pytest.approx(whole.offered)


def test_a_timeout_keeps_the_goodput_that_a_server_without_limits_loses(bench: Bench, tmp_path: Path) -> None:
    def good(limits: Limits, run: Path) -> float:
        sent = loaded(bench.target(limits), "http", run)
        return goodput(sent.seen, sent.errors, SLO, policy="", from_s=0.5, until_s=SECONDS).good

    assert 75 < good(TIMEOUT, tmp_path / "timed") < 165, "of 155 that it can serve; on a busy machine fewer"
    assert good(Limits(), tmp_path / "unlimited") == 0


def test_other_limits_are_served_beside_the_measured_server_which_is_left_as_it_is(
    bench: Bench, tmp_path: Path
) -> None:
    target, current = bench.target(Limits()), ledger.current(bench.out)
    config = VARIANTS[BOTH].config

    with served_beside(
        target, [config], out=bench.out, folder=tmp_path / "beside", protocol="http", say=Say(quiet=True)
    ) as [beside]:
        assert beside.server is not None
        assert (beside.model, beside.url != target.url) == ("sleep__both", True)
        policy = KServe(beside.url).model_config(beside.model)["dynamic_batching"]["default_queue_policy"]
        assert ledger.current(bench.out) == current == bench.server
    assert (int(policy["max_queue_size"]), int(policy["default_timeout_microseconds"])) == (10, 30_000)
    assert not ledger.alive(beside.server)
    assert ledger.alive(bench.server)
    assert not (tmp_path / "beside" / "repository").exists()
