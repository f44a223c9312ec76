"""Known servers on the real tritonserver: their logs held against their parameters by arithmetic."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, median
from urllib.parse import urlsplit

import numpy as np
import pytest

from brim import layout
from brim.kserve import KServe
from brim.records import Server
from brim.say import Say
from serve import embedded, ledger
from serve.executions import Execution, executions_by_instance, read_executions
from serve.variants import build, plan_variants
from tests.measuring import until

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(not layout.tools_manifest().exists(), reason="no .tools/: `make serve` sets them up"),
]

CONFIGS = "[b4]\n[b1]\nmax_batch = 1\n[pair]\ninstances = 2\n[pair1]\nmax_batch = 1\ninstances = 2\n"
WORK_MS = 60.0
MEAN_MS = 5.0
QUEUE = 3
MODELS = [
    "affine:tau0_ms=8,alpha_ms=3",
    "optimum:tau0_ms=10,alpha_ms=0.5,best=3",
    f"contended:service_ms={WORK_MS:g}__pair",
    f"exponential:service_ms={MEAN_MS:g},seed=7__pair1",
    "stall:service_ms=5,at_s=0.3,stall_ms=200__b1",
    f"reject:service_ms=40,queue={QUEUE}",
]
#: What the operating system takes to wake a process up: at best, as a rule, and where cores are busy.
PROMPT_MS = 0.5
LATE_MS = 2.0
LATE_ON_BUSY_CORES_MS = 30.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """A live server and what its models logged."""

    server: Server

    @property
    def folder(self) -> Path:
        return Path(str(self.server.log)).parent

    def log(self, variant: str) -> list[Execution]:
        return read_executions(self.folder, variant)

    def ask(self, variant: str, items: int) -> tuple[int, str]:
        """HTTP status and body of one request."""
        data = [[0.5] * 16] * items
        tensor = {"name": "INPUT", "datatype": "FP32", "shape": [items, 16], "data": data}
        address = urlsplit(self.server.http)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
        try:
            connection.request("POST", f"/v2/models/{variant}/infer", json.dumps({"inputs": [tensor]}))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def serve(self, variant: str, items: int) -> None:
        status, body = self.ask(variant, items)
        assert status == 200, body
        assert json.loads(body)["outputs"][0]["data"] == [0.5] * 16 * items

    def at_once(self, variant: str, items: int, requests: int) -> list[tuple[int, str]]:
        """The answers to that many requests, all sent together."""
        barrier = threading.Barrier(requests)

        def send(_: int) -> tuple[int, str]:
            barrier.wait(timeout=30)
            return self.ask(variant, items)

        with ThreadPoolExecutor(requests) as threads:
            return list(threads.map(send, range(requests)))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("known")
    out, repository, configs = folder / "out", folder / "repository", folder / "configs.toml"
    configs.write_text(CONFIGS)
    variants = plan_variants(MODELS, [], out=out, configs_file=configs, mode="embedded")
    for variant in variants:
        build(variant, out=out, repository=repository, viewed=())
    server = embedded.start([v.name for v in variants], out=out, repository=repository, say=Say(quiet=True))
    yield Served(server=server)
    ledger.stop(server, out)


def took_ms(executions: Sequence[Execution]) -> list[float]:
    return [(end_ns - start_ns) / 1e6 for start_ns, end_ns, _ in executions]


def test_affine_takes_its_constant_and_a_share_for_every_item(served: Served) -> None:
    warmup = len(served.log("affine__b4"))
    sizes = [1, 4, 2] * 5
    for items in sizes:
        served.serve("affine__b4", items)
    executions = served.log("affine__b4")[warmup:]
    assert [items for _, _, items in executions] == sizes
    for items in (1, 2, 4):
        late_ms = [took - (8 + 3 * items) for took in took_ms([each for each in executions if each[2] == items])]
        # Another process can make most of a few late, a defect of the model all: the best shows that one.
        assert 0 <= min(late_ms) <= PROMPT_MS
        assert median(late_ms) <= LATE_ON_BUSY_CORES_MS


def test_the_throughput_of_optimum_peaks_at_its_best_batch(served: Served) -> None:
    warmup = len(served.log("optimum__b4"))
    for items in [1, 2, 3, 4] * 3:
        served.serve("optimum__b4", items)
    executions = served.log("optimum__b4")[warmup:]
    rates = {items: items / min(took_ms([e for e in executions if e[2] == items])) for items in (1, 2, 3, 4)}
    assert max(rates, key=lambda items: rates[items]) == 3
    assert 3 / rates[3] == pytest.approx(10 + 0.5 * 3 + 10, abs=LATE_MS)  # at the peak the square costs tau0 again


def test_an_instance_of_contended_is_slowed_by_the_other_for_as_long_as_that_is_at_work(served: Served) -> None:
    """Two full batches, of which the second begins d later: each is at work for 2 * service_ms - d."""
    warmup = len(served.log("contended__pair"))
    for items in (4, 1, 2):
        served.serve("contended__pair", items)
    alone = took_ms(served.log("contended__pair")[warmup:])
    assert min(alone) >= WORK_MS
    assert median(alone) <= WORK_MS + LATE_MS

    together = [overlapping(served, later_ms) for later_ms in (0, WORK_MS / 2) * 3]
    offsets_ms = [offset_ms for offset_ms, _ in together]
    assert min(offsets_ms) < WORK_MS / 4 < max(offsets_ms), "both at once, and one after the other"
    assert all(-LATE_MS <= late_ms <= LATE_ON_BUSY_CORES_MS for _, late_ms in together)
    assert median(late_ms for _, late_ms in together) <= LATE_MS
    assert all(len(each) > 2 for each in executions_by_instance(served.folder, "contended__pair").values())


def overlapping(served: Served, later_ms: float) -> tuple[float, float]:
    """Of two full batches sent that far apart: how much later the second began, and how late the later one was."""
    before = len(served.log("contended__pair"))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(served.serve, "contended__pair", 4)
        time.sleep(later_ms / 1e3)  # the distance is what is tested; what it became stands in the log
        second = threads.submit(served.serve, "contended__pair", 4)
        for each in (first, second):
            each.result()
    both = served.log("contended__pair")[before:]
    offset_ms = (both[1][0] - both[0][0]) / 1e6
    expected_ms = WORK_MS + max(0, WORK_MS - offset_ms)
    return offset_ms, max((each - expected_ms for each in took_ms(both)), key=abs)


def test_exponential_serves_the_times_of_its_seed_in_order_each_instance_its_own(served: Served) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: served.serve("exponential__pair1", 1), range(400)))
    logs = executions_by_instance(served.folder, "exponential__pair1")
    assert sorted(logs) == ["0_0", "0_1"]
    for instance, name in enumerate(sorted(logs)):
        took = took_ms(logs[name])
        drawn = np.random.default_rng([7, instance]).exponential(MEAN_MS, len(took))
        assert all(time_ms >= draw - 1e-5 for time_ms, draw in zip(took, drawn, strict=True))
        assert median(took - drawn) <= 1
    everything = took_ms(served.log("exponential__pair1"))
    assert fmean(everything) == pytest.approx(MEAN_MS, abs=4 * MEAN_MS / sqrt(len(everything)))


def test_stall_freezes_one_batch_the_first_that_begins_after_its_instant(served: Served) -> None:
    def frozen() -> list[Execution]:
        return [each for each in served.log("stall__b1") if (each[1] - each[0]) / 1e6 > 200]

    def served_and_frozen() -> list[Execution]:
        served.serve("stall__b1", 1)
        return frozen()

    warmup = len(served.log("stall__b1"))
    until("a batch freezes", served_and_frozen)
    for _ in range(40):  # as long as its instant was away
        served.serve("stall__b1", 1)
    executions = served.log("stall__b1")[warmup:]
    instant_ns = executions[0][0] + 300_000_000
    assert frozen() == [next(each for each in executions if each[0] >= instant_ns)]
    assert 205 <= took_ms(frozen())[0] <= 205 + LATE_ON_BUSY_CORES_MS
    assert (served.folder / "log").read_text().count("Brim: stall__b1_0_0 freezes for 200 ms") == 1


def test_reject_turns_away_what_its_queue_does_not_hold_and_serves_the_rest(served: Served) -> None:
    questions = KServe(served.server.http)
    assert questions.model_config("reject__b4")["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == QUEUE
    warmup = len(served.log("reject__b4"))
    before = questions.statistics("reject__b4")

    answers = served.at_once("reject__b4", 1, 40)

    after = questions.statistics("reject__b4")
    rejected = [body for status, body in answers if status == 503]
    assert all("Exceeds maximum queue size" in body for body in rejected)
    assert [status for status, _ in answers].count(200) == 40 - len(rejected)
    assert rejected
    # A batch at work, one that is handed over, and the queue.
    assert QUEUE < 40 - len(rejected) <= 4 + 4 + QUEUE
    assert sum(items for _, _, items in served.log("reject__b4")[warmup:]) == 40 - len(rejected)
    assert after["inference_count"] - before["inference_count"] == 40 - len(rejected)
