"""The rate at an SLO around its search: which rules its loads are held to, what a host may get, what follows of it."""

from __future__ import annotations

import ast
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from analysis.rates import slo_checks
from benchmarks.simulated_probe import SimulatedProbe, sleeping
from brim import layout
from brim.errors import NoValidNumber
from brim.records import Arrivals, Load, LoadPoint, Slo, SloRate, Status, Target, TargetLimit
from experiments.measure.alone import Kept
from experiments.measure.bench import Bench
from experiments.measure.cut import windows_of
from experiments.measure.gathered import MeasuredLoad
from experiments.measure.rate_at_slo import checks_of, kept, most_per_s
from experiments.measure.request import Offsets, OpenLoop, SloAsked
from experiments.measure.trial import SentLoad
from experiments.overload.measure import beyond
from judging.rows import Rows
from loadtest.plan import read_plan
from queueing import arrivals
from tests.unit.test_measure_answer import TARGET

PLAN = read_plan(None)
POINT = LoadPoint(mode="open", rate_per_s=300.0, arrivals="poisson", outstanding=512)


def trial(rows: Rows | None = None) -> SentLoad:
    """20 s of 300/s at a server of 386/s, all answered well; the same with other rows."""
    offsets_ns = arrivals.poisson(300.0, 20.0, 1)
    seen = SimulatedProbe(sleeping(1), seed=1).open(offsets_ns, 300.0, 20.0)
    end_ns = int(seen.rows["done_ns"].max())
    last = seen.reads[-1]
    drained = replace(last, before_ns=end_ns + 1, after_ns=end_ns + 1, inference_count=offsets_ns.size)
    rows = seen.rows if rows is None else rows
    load = Load(
        index=0, generator="locust", purpose="trial", point=POINT, workers=(0,), start_ns=seen.start_ns, end_ns=end_ns,
        sent=len(rows), ok=len(rows), rejected=0, timed_out=0, failed=0, cancelled=0, items_ok=len(rows),
        client_cpu_s=1.0, ended="finished",
    )  # fmt: skip
    return SentLoad(load=load, rows=rows, reads=(*seen.reads, drained), offsets_ns=offsets_ns)


def test_rules_1_and_2_hold_of_trials_that_add_up_and_are_told_in_four_words() -> None:
    made = checks_of([trial()], PLAN)
    assert [(check.rule, check.state) for check in made] == [(1, "held"), (2, "held")]
    assert made[1].value == 0.0
    assert slo_checks(made) == ["checks: 1 2 held"]


def test_a_trial_whose_counts_are_not_the_servers_breaks_rule_1() -> None:
    every = trial().rows
    answered = checks_of([trial(), trial(every[:-40])], PLAN)[0]
    assert answered.state == "broken"
    assert f"server inferred {len(every)} items, clients {len(every) - 40}" in answered.reason
    assert slo_checks(checks_of([trial(every[:-40])], PLAN))[-1].startswith("check 1 accounting BROKEN: whole load")


def test_answers_that_the_server_never_made_break_rule_1_in_the_windows_of_a_trial() -> None:
    """As many in the whole load, but at other times: 300 answers of its warm-up are told of what follows."""
    rows = trial().rows.copy()
    for name in ("intended_ns", "sent_ns", "done_ns"):
        rows[name][300:600] += 8_000_000_000
    broken = checks_of([trial(np.sort(rows, order="done_ns").view(Rows))], PLAN)[0]
    assert broken.state == "broken" and broken.reason.startswith("window: server")


def test_a_request_that_was_sent_before_it_was_meant_breaks_rule_2() -> None:
    rows = trial().rows.copy()
    rows["sent_ns"][7] -= 1
    made = checks_of([trial(), trial(rows)], PLAN)
    assert made[1].state == "broken" and "1 requests were sent before they were meant" in slo_checks(made)[-1]


def test_where_nothing_was_sent_nothing_is_claimed() -> None:
    assert slo_checks(checks_of([], PLAN)) == []


# ---------------------------------------------------------------------------- a rate that was asked for


def verdict_of(
    rate: float, seconds: float, *, limit_ms: float, percentile: float | None = None, law: Arrivals = "poisson",
    offsets_ns: Offsets | None = None, late: bool = False, rejects: int = 0,
) -> SloRate:  # fmt: skip
    """Of `sleeping(1)`, which serves 386/s: at that rate, or at those instants."""
    if offsets_ns is None:
        offsets_ns = (arrivals.constant if law == "constant" else partial(arrivals.poisson, seed=1))(rate, seconds)
    seen = SimulatedProbe(sleeping(1), seed=1).open(offsets_ns, rate, seconds)
    rows = seen.rows
    if late:  # the sender: ever later, and each answer with it
        lag_ns = np.arange(len(rows)) * 1_000_000
        rows["sent_ns"] += lag_ns
        rows["done_ns"] += lag_ns
    if rejects:  # every so manieth
        rows["status"][::rejects] = Status.REJECTED
    point = replace(POINT, rate_per_s=rate, arrivals=law)
    load = replace(
        trial().load, purpose="figure", point=point, start_ns=seen.start_ns,
        end_ns=seen.start_ns + round(seconds * 1e9), sent=len(rows), ok=len(rows), items_ok=len(rows),
    )  # fmt: skip
    windows = windows_of(
        rows, seen.reads, generator="locust", point=point, min_seconds=1.0, min_batches=1, max_seconds=60.0, unsent=0
    )
    measured = MeasuredLoad(
        load=load, windows=tuple(windows), rows=rows, period_ns=1, kept=Kept(folder=Path(), samples=()),
        reads=seen.reads,
    )  # fmt: skip
    bench = SimpleNamespace(loads=[measured], request=SimpleNamespace(items_per_request=1))
    asked = SloAsked(limit_ms=limit_ms, percentile=percentile, seconds=60.0)
    open_loop = OpenLoop(offsets_ns=offsets_ns, rate_per_s=rate, arrivals=law, seconds=seconds, outstanding=512)
    return kept(cast(Bench, bench), asked, open_loop)


def test_a_rate_is_met_or_missed_by_the_share_of_what_was_due() -> None:
    assert verdict_of(300.0, 20.0, limit_ms=100.0).verdict == "met"
    missed = verdict_of(380.0, 20.0, limit_ms=60.0)
    assert missed.verdict == "missed" and "were answered within 60 ms" in missed.reason


def test_a_rate_that_is_missed_by_rejections_says_so() -> None:
    found = verdict_of(200.0, 20.0, limit_ms=100.0, law="constant", rejects=4)
    assert found.verdict == "missed" and "in the whole load 1000 (25.0%) rejected of 4000 requests" in found.reason
    assert "rejected" not in verdict_of(200.0, 20.0, limit_ms=100.0, law="constant", rejects=200).reason  # met


def test_a_rate_above_the_capacity_is_missed_however_long_the_limit() -> None:
    """410/s of 386/s for 10 s: a backlog of 240 requests, each of which has waited no longer than 0.7 s yet."""
    found = verdict_of(410.0, 10.0, limit_ms=1000.0, law="constant")
    assert found.verdict == "missed"
    assert found.reason.startswith("the server does not keep up") and "100.00% of" in found.reason


def test_too_few_requests_meet_no_percentile() -> None:
    with pytest.raises(NoValidNumber, match=r"8 requests are too few to show p99.9, 3000 must be due"):
        verdict_of(1.0, 10.0, limit_ms=500.0, percentile=99.9, law="constant")
    assert verdict_of(1.0, 10.0, limit_ms=5.0, law="constant").verdict == "missed"  # all of them were late


def test_of_a_rate_that_is_asked_for_it_is_the_99th_percentile_however_low_the_rate() -> None:
    assert verdict_of(40.0, 20.0, limit_ms=100.0).slo.percentile == 99.0


def test_a_burst_at_the_beginning_of_a_trace_counts_as_any_other() -> None:
    burst, rest = np.zeros(100, dtype=np.int64), np.arange(1, 1001, dtype=np.int64) * 20_000_000
    found = verdict_of(55.0, 20.001, limit_ms=100.0, law="trace", offsets_ns=np.concatenate((burst, rest)))
    assert found.verdict == "missed" and "of 1100 requests" in found.reason


def test_a_client_that_does_not_keep_up_leaves_it_open_whether_the_rate_is_met() -> None:
    with pytest.raises(NoValidNumber, match="cannot be told: the client") as ended:
        verdict_of(300.0, 10.0, limit_ms=20_000.0, late=True)
    assert ended.value.word == "unstable"


@pytest.mark.parametrize(
    ("host", "allowed", "most"),
    [
        ("198.51.100.7", {"198.51.100.7": 25.0}, 25.0),
        ("198.51.100.7", {"198.51.100.7": None}, None),
        ("198.51.100.7", {"198.51.100.8": 25.0}, None),
        ("127.0.0.1", {"127.0.0.1": 25.0}, None),  # senders keep no limit to this machine
    ],
)
def test_the_most_that_a_host_may_get_is_the_users_word(
    host: str, allowed: dict[str, float | None], most: float | None
) -> None:
    limits = {name: TargetLimit(host=name, max_rate_per_s=rate) for name, rate in allowed.items()}
    assert most_per_s(target(host), limits) == most


def target(host: str) -> Target:
    return replace(TARGET, url=f"http://{host}:8000")


@pytest.mark.parametrize(
    ("items_per_s", "why"),
    [
        (
            200 - 3 * 200**0.5,
            "max_rate_per_s allows this host 200/s, too little to go beyond the rate that meets the SLO",
        ),
        (120.0, "it begins at the rate that meets the SLO, which was not found"),  # by data that give no interval
        (None, "it begins at the rate that meets the SLO, which was not found"),
    ],
)
def test_an_overload_needs_a_rate_and_room_beyond_it_and_says_what_it_lacks(
    items_per_s: float | None, why: str
) -> None:
    said: list[str] = []
    host = "198.51.100.7"
    request = SimpleNamespace(overload=True, allowed={host: TargetLimit(host=host, max_rate_per_s=200.0)})
    bench = SimpleNamespace(
        request=request, target=target(host), interrupted=None, lost=None, say=SimpleNamespace(warn=said.append)
    )
    found = SloRate(slo=Slo(limit_ms=100.0), items_per_s=items_per_s, ci95=None, given="data", verdict="not_resolvable")
    assert beyond(cast(Bench, bench), found) is None  # it asks for no more of a bench than this
    assert said == [f"no overload: {why}"]


def test_what_an_overload_stands_on_does_not_know_of_overloads() -> None:
    """The shell of a measurement calls it; of what it imports itself none imports it back, now or later."""
    waiting, seen = [layout.CHECKOUT / "experiments" / "overload" / "measure.py"], set[Path]()
    while waiting:
        file = waiting.pop()
        seen.add(file)
        names = imported(file)
        below = [
            layout.CHECKOUT / (name.replace(".", "/") + ".py") for name in names if name.startswith("experiments.")
        ]
        if "overload" not in file.parts:
            assert not [name for name in names if name.startswith("experiments.overload")], file
        waiting += [one for one in below if one.exists() and one not in seen]
    assert layout.CHECKOUT / "experiments" / "measure" / "rate_at_slo.py" in seen


def imported(file: Path) -> list[str]:
    """Modules named by any import in the file, those within functions too."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names += [str(node.module), *(f"{node.module}.{one.name}" for one in node.names)]
        elif isinstance(node, ast.Import):
            names += [one.name for one in node.names]
    return names


def test_status_of_a_trial_counts_what_the_server_may_have_inferred_unseen() -> None:
    rows = trial().rows.copy()
    rows["status"][:5] = Status.TIMED_OUT
    assert checks_of([trial(rows)], PLAN)[0].state == "held"
