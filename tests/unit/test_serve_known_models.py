"""The known servers that take a time of their own: their formulas by arithmetic, their state without a server."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic_ns
from typing import Any

import pytest

from serve.executions import executions_by_instance, read_executions
from serve.known import KINDS, MODELS, digest, shared_modules
from tests.python_stub import Backend, answers, backend_in, model, request

MS = 1_000_000  # ns


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Backend]:
    with backend_in(tmp_path, monkeypatch) as stand_in:
        yield stand_in


def timed(backend: Backend, kind: str, *, instance: int = 0, warmups: int = 0, **parameters: float) -> Any:
    """The known server with these parameters, the others as they are by default."""
    told = {"brim.parameters": json.dumps({**KINDS[kind], **parameters})}
    return model(backend, kind, told, instance=instance, warmups=warmups)


def module(kind: str) -> Any:
    return importlib.import_module(f"serve.models.{kind}")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "timed.py" in shared_modules(kind)])
def test_a_timed_server_gives_each_request_its_own_input_and_logs_what_it_took(backend: Backend, kind: str) -> None:
    short = {name: 2.0 if name.endswith("_ms") else value for name, value in KINDS[kind].items()}
    server = model(backend, kind, {"brim.parameters": json.dumps(short)})
    assert answers(server.execute([request([[1]]), request([[2], [3]])])) == [{"OUTPUT": [[1]]}, {"OUTPUT": [[2], [3]]}]
    [(start_ns, end_ns, items)] = read_executions(backend.folder, f"{kind}__b4")
    assert items == 3
    assert end_ns - start_ns >= 2 * MS or kind == "exponential"


@pytest.mark.parametrize("kind", KINDS)
def test_the_digest_covers_every_module_that_a_server_is_made_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    for file in MODELS.glob("*.py"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr("serve.known.MODELS", tmp_path)
    before = digest(kind)
    covered = set()
    for file in tmp_path.glob("*.py"):
        content = file.read_bytes()
        file.write_bytes(content + b"#")
        if digest(kind) != before:
            covered.add(file.name)
        file.write_bytes(content)
    assert covered == {f"{kind}.py", *shared_modules(kind)}


# ---------------------------------------------------------------------------- formulas


def test_affine_is_a_constant_and_a_share_for_every_item(backend: Backend) -> None:
    server = timed(backend, "affine", tau0_ms=7, alpha_ms=2)
    assert [server.service_ms(items) for items in (1, 2, 8)] == [9, 11, 23]


@pytest.mark.parametrize("best", [1, 2, 3, 6, 10])
def test_the_throughput_of_optimum_peaks_at_its_best_batch(backend: Backend, best: int) -> None:
    server = timed(backend, "optimum", tau0_ms=12, alpha_ms=0.25, best=best)
    assert server.service_ms(best) == pytest.approx(12 + 0.25 * best + 12)
    rates = [items / server.service_ms(items) for items in range(1, 21)]
    assert rates.index(max(rates)) + 1 == best
    assert rates == sorted(rates[:best]) + sorted(rates[best:], reverse=True)


def test_exponential_draws_the_same_for_the_same_seed_and_instance_and_has_its_mean(backend: Backend) -> None:
    def draws(seed: float, instance: int) -> list[float]:
        server = timed(backend, "exponential", service_ms=20, seed=seed, instance=instance)
        return [server.service_ms(1) for _ in range(10_000)]

    first = draws(3, 0)
    assert first == draws(3, 0)
    others = [draws(3, 1), draws(4, 0)]
    assert len({tuple(each) for each in (first, *others)}) == 3
    for each in (first, *others):
        assert sum(each) / len(each) == pytest.approx(20, abs=4 * 20 / 100)  # four standard errors
        longer = sum(time_ms > 40 for time_ms in each) / len(each)
        assert longer == pytest.approx(0.1353, abs=4 * 0.0034)  # exp(-2)


# ---------------------------------------------------------------------------- stall


def test_the_frozen_batch_is_the_first_that_begins_at_the_instant_or_later_and_no_other(backend: Backend) -> None:
    freeze = module("stall").Freeze(warmups=0, at_s=2)
    begins_ns = [5_000 * MS, 6_999 * MS, 7_000 * MS, 7_001 * MS, 90_000 * MS]
    assert [freeze.begins(now_ns) for now_ns in begins_ns] == [False, False, True, False, False]


def test_warm_up_neither_starts_the_clock_of_a_freeze_nor_freezes(backend: Backend) -> None:
    freeze = module("stall").Freeze(warmups=2, at_s=0)
    assert [freeze.begins(now_ns * MS) for now_ns in (1, 2, 60_000, 60_001)] == [False, False, True, False]


def test_a_freeze_is_in_the_log_of_executions_and_told_in_words(backend: Backend) -> None:
    server = timed(backend, "stall", warmups=1, service_ms=1, stall_ms=30, at_s=0)
    for _ in range(4):
        server.execute([request([[1]])])
    took_ms = [(end_ns - start_ns) / MS for start_ns, end_ns, _ in read_executions(backend.folder, "stall__b4")]
    assert [took >= 30 for took in took_ms] == [False, True, False, False]
    assert took_ms[1] >= 31
    assert [line.split(",")[0] for line in backend.logged[1:]] == ["Brim: stall__b4_0_0 freezes for 30 ms"]


# ---------------------------------------------------------------------------- contended


@pytest.mark.parametrize(
    ("left", "elapsed", "still_left"),
    [
        ([20, 0], 5, [15, 0]),  # alone: all of the time
        ([20, 20], 10, [15, 15]),  # two: half of it each
        ([20, 8], 10, [15, 3]),
        ([20, 4], 10, [14, 0]),  # 8 until the small one is done, then 2 alone
        ([20, 4, 12], 12, [16, 0, 8]),
        ([20, 4, 12], 28, [8, 0, 0]),  # 12 for 4 each, 16 for 8 more of two
        ([20, 4], 24, [0, 0]),
        ([20, 4], 1000, [0, 0]),
        ([0, 0], 7, [0, 0]),
        ([], 7, []),
    ],
)
def test_instances_at_work_share_the_time_equally(
    backend: Backend, left: list[float], elapsed: float, still_left: list[float]
) -> None:
    assert module("contended").worked_off(left, elapsed) == pytest.approx(still_left)


def test_the_end_that_is_foreseen_is_the_one_that_working_off_leads_to(backend: Backend) -> None:
    contended = module("contended")
    left = [20.0, 4.0, 12.0, 0.0]
    assert [contended.done_in_ns(left, instance) for instance in range(4)] == [36, 12, 28, 0]
    for instance in range(3):
        done_in = contended.done_in_ns(left, instance)
        assert contended.worked_off(left, done_in)[instance] == pytest.approx(0)
        assert contended.worked_off(left, 0.99 * done_in)[instance] > 0


def test_the_instances_of_a_variant_slow_each_other_through_the_file_that_they_share(
    backend: Backend, tmp_path: Path
) -> None:
    work = [module("contended").SharedWork(tmp_path / "shared.bin", instance) for instance in range(2)]
    start_ns = monotonic_ns() + 1_000_000 * MS  # instants of our own, all later than the real ones of opening
    work[0].begin(20 * MS, start_ns)
    assert work[0].done_ns(start_ns + 8 * MS) == start_ns + 20 * MS  # alone
    work[1].begin(20 * MS, start_ns + 10 * MS)
    assert work[0].done_ns(start_ns + 10 * MS) == start_ns + 30 * MS  # 10 left, at half the rate
    assert work[1].done_ns(start_ns + 10 * MS) == start_ns + 40 * MS  # 20 shared, the last 10 alone
    assert work[1].done_ns(start_ns + 39 * MS) == start_ns + 40 * MS  # nobody had to look in between
    assert work[0].done_ns(start_ns + 41 * MS) == start_ns + 41 * MS  # long done
    for each in work:
        each.close()


def test_the_work_of_an_instance_that_died_comes_to_its_end_or_is_forgotten_when_it_is_back(
    backend: Backend, tmp_path: Path
) -> None:
    def instance(number: int) -> Any:
        return module("contended").SharedWork(tmp_path / "shared.bin", number)

    survivor, victim = instance(0), instance(1)
    start_ns = monotonic_ns() + 1_000_000 * MS
    victim.begin(20 * MS, start_ns)
    victim.close()  # as the kernel does
    survivor.begin(20 * MS, start_ns)
    assert survivor.done_ns(start_ns) == start_ns + 40 * MS
    survivor.begin(20 * MS, start_ns + 40 * MS)
    assert survivor.done_ns(start_ns + 40 * MS) == start_ns + 60 * MS

    survivor.begin(0, start_ns + 60 * MS)
    killed = instance(1)
    killed.begin(60_000 * MS, start_ns + 60 * MS)
    killed.close()
    again = instance(1)
    survivor.begin(20 * MS, start_ns + 70 * MS)
    assert survivor.done_ns(start_ns + 70 * MS) == start_ns + 90 * MS
    for each in (survivor, again):
        each.close()


def test_two_instances_in_threads_take_as_long_as_their_work_together(backend: Backend) -> None:
    servers = [timed(backend, "contended", instance=number, service_ms=30) for number in range(2)]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda server: server.execute([request([[1]])]), servers))
    logs = executions_by_instance(backend.folder, "contended__b4")
    [(first_ns, first_end_ns, _)], [(second_ns, second_end_ns, _)] = logs["0_0"], logs["0_1"]
    assert max(first_end_ns, second_end_ns) - min(first_ns, second_ns) >= 60 * MS


def test_no_other_module_than_the_shared_ones_is_imported_beside_a_model() -> None:
    for kind in (*KINDS, "engine"):
        beside = set()
        for name in (f"{kind}.py", *shared_modules(kind)):
            lines = (MODELS / name).read_text().splitlines()
            beside |= {each for line in lines if line.startswith("from . import ") for each in line[14:].split(", ")}
        assert {f"{name}.py" for name in beside} == set(shared_modules(kind)), kind
