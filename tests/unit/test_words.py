"""Figures and verdicts in words, on the terminal and in the page."""

from __future__ import annotations

import dataclasses
import textwrap

import pytest

import tests.unit.finished_runs as made
from analysis import rates, words
from brim.records import Check, LoadPoint, Server, ServingConfig, Variant, Verdict
from experiments.measure import show
from serve import known


@pytest.mark.parametrize(
    ("value", "told"),
    [(0, "0"), (0.5, "0.50"), (0.001234, "0.00"), (9.994, "9.99"), (18.44, "18.4"), (184.4, "184"), (999.4, "999"),
     (999.6, "1,000"), (12345.6, "12,346"), (-3.25, "-3.25")],
)  # fmt: skip
def test_numbers_have_three_significant_digits_and_separators_above(value: float, told: str) -> None:
    assert words.number(value) == told


@pytest.mark.parametrize(
    ("foreign", "told"),
    [
        ("plain", "plain"),
        ("\x1b]0;title\x07a\x1b[2Jb\x1bcd", "abd"),
        ("one\r\ntwo\tthree\u2028four", "one two three four"),
        ("\u202eabc\u2069", "abc"),
        ("\ud800x", "x"),
    ],
)
def test_foreign_text_becomes_one_harmless_line(foreign: str, told: str) -> None:
    assert words.clean(foreign) == told


def test_a_long_text_is_cut_and_says_so() -> None:
    assert words.clean("x" * 10_000, 50) == "x" * 49 + "…"


def test_the_headline_has_rate_interval_verdict_limit_and_evidence_in_one_line() -> None:
    assert show.headline(made.answer()) == (
        "resnet50__b4  19.9 images/s (19.7 to 20.1, 3 starts) SATURATED by engine: busy 99%, batches 4.0 of 4"
    )
    once = made.answer(ci_kind="within_run", starts=1)
    assert "(19.7 to 20.1, within_run)" in show.headline(once)
    unknown = made.answer(verdict=Verdict.STILL_RISING, limited_by="unknown", reasons=("it gained +9%",))
    assert show.headline(unknown).endswith("STILL_RISING: it gained +9%")
    assert "no number ABORTED" in show.headline(made.answer(verdict=Verdict.ABORTED, items_per_s=None, reasons=()))


def test_the_details_have_each_piece_of_evidence_once() -> None:
    lines = show.details(made.answer())
    assert lines[0] == "at 8 requests in flight over HTTP: p50 400 ms, p99 460 ms; queue 198 ms"
    assert lines[1:4] == [
        "another sender changed nothing (+0.2%)",
        "cross-check: perf_analyzer 19.7 images/s (agrees, 1.1% apart)",
        "engine alone: 20.4 images/s; serving efficiency 0.975",
    ]
    assert len(lines) == len(set(lines))
    proves_nothing = Check(rule=3, name="limit_by_experiment", state="broken", value=0.0, reason="proves nothing")
    lines = show.details(made.answer(checks=(proves_nothing,), reasons=("engine: busy 99%", "proves nothing")))
    assert [line for line in lines if "proves nothing" in line] == ["  3 limit_by_experiment BROKEN: proves nothing"]


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (Check(rule=5, name="n", state="held", value=0.011), "agrees, 1.1% apart"),
        (Check(rule=5, name="n", state="broken", value=0.08), "DISAGREES, 8.0% apart"),
        (Check(rule=5, name="n", state="not_applicable", reason="one round"), "compared, not judged: one round"),
        (Check(rule=5, name="n", state="broken", reason="1 and 2 windows"), "not judged: 1 and 2 windows"),
    ],
)
def test_the_word_of_the_cross_check_is_the_rules_own(check: Check, told: str) -> None:
    assert words.cross_check(made.answer(checks=(check,))) == f"perf_analyzer 19.7 images/s ({told})"


@pytest.mark.parametrize(
    ("point", "told"),
    [
        (LoadPoint(concurrency=8), "8 requests in flight over HTTP"),
        (
            LoadPoint(concurrency=8, items_per_request=2, senders=2, protocol="grpc", transport="shared_memory"),
            "8 requests of 2 items in flight over gRPC through shared memory from 2 senders",
        ),
        (
            LoadPoint(mode="open", rate_per_s=12.5, arrivals="poisson", outstanding=64, compression="gzip"),
            "12.5 requests/s over HTTP, gzip",
        ),
    ],
)
def test_a_load_point_is_told_with_its_way_in(point: LoadPoint, told: str) -> None:
    assert words.point(point) == told


def embedded() -> Server:
    return Server(
        id="s", mode="embedded", http=made.TARGET.url, grpc=None, metrics=None, pid=1, process_started_s=0.0,
        version="2.51.0", variants=(), repository=None, log=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "next_command"),
    [
        ({}, "brim report 20260101T000000Z-resnet50__b4-0a1b2c"),
        ({"ci_kind": "within_run", "command": "brim loadtest m"}, "brim loadtest m --starts 3"),
        ({"verdict": Verdict.POINT, "command": "brim loadtest m --concurrency 8 -v"}, "brim loadtest m -v"),
        ({"verdict": Verdict.CLIENT_LIMITED, "command": "brim loadtest m --senders=1"}, "brim loadtest m --senders 2"),
        ({"verdict": Verdict.STILL_RISING, "command": "brim loadtest m"}, "brim loadtest m --concurrency 1:64"),
        ({"verdict": Verdict.FAILING}, "brim status"),
        ({"verdict": Verdict.UNSTABLE, "command": ""}, "brim loadtest resnet50__b4"),
    ],
)
def test_the_next_command_follows_from_the_verdict(changes: dict[str, object], next_command: str) -> None:
    target = dataclasses.replace(made.TARGET, server=embedded())
    assert show.next_step(made.answer(**changes), target).startswith(f"next: {next_command}  (")


VARIANT = Variant(model=known.known_server("sleep", {}), config=ServingConfig(name="b8"))
OPEN = LoadPoint(mode="open", rate_per_s=9.0, arrivals="poisson", outstanding=64)


def test_after_an_open_loop_whose_sending_lagged_another_sender_is_proposed_and_not_an_slo() -> None:
    target = dataclasses.replace(made.TARGET, server=embedded())
    late = made.answer(
        verdict=Verdict.UNSTABLE, at=OPEN, reasons=("the client does not keep up: x",), command="brim loadtest m"
    )
    assert show.next_step(late, target).startswith("next: brim loadtest m --senders 2  (")
    slow = made.answer(verdict=Verdict.UNSTABLE, at=OPEN, reasons=("the server does not keep up: x",))
    assert show.next_step(slow, target).startswith("next: brim loadtest resnet50__b4 --slo-ms auto  (")


@pytest.mark.parametrize(
    ("changes", "command", "then"),
    [
        ({"verdict": "resolved"}, "brim loadtest m --slo-ms auto", "brim loadtest m --slo-ms auto --overload"),
        ({"verdict": "missed"}, "brim loadtest m --rate 9 --seed=3 --slo-ms 50", "brim loadtest m --slo-ms 50"),
        ({"verdict": "not_resolvable", "seconds_spent": 61.2, "reason": "SLO rate not resolvable in 60 s"},
         "brim loadtest m --slo-ms 50 --slo-seconds 60", "brim loadtest m --slo-ms 50 --slo-seconds 150"),
        ({"verdict": "unattainable"}, "brim loadtest m --slo-ms 5", "brim loadtest m --slo-ms auto"),
    ],
)  # fmt: skip
def test_the_next_command_after_a_rate_at_an_slo(changes: dict[str, object], command: str, then: str) -> None:
    target = dataclasses.replace(made.TARGET, server=embedded(), variant=VARIANT)
    assert show.after_slo(made.slo_rate(**changes), command, target, overload=False).startswith(f"next: {then}  (")


def test_longer_trials_are_not_proposed_where_they_would_tell_no_more() -> None:
    wide = made.slo_rate(
        verdict="not_resolvable", reason="a limit of 9000 ms is so wide that the capacity alone sets it"
    )
    assert not show.after_slo(wide, "brim loadtest m --slo-ms 9000", made.TARGET, overload=False)


def test_after_an_overload_and_on_a_server_elsewhere_no_overload_is_proposed() -> None:
    target = dataclasses.replace(made.TARGET, server=embedded(), variant=VARIANT)
    assert not show.after_slo(made.slo_rate(), "brim loadtest m", target, overload=True)
    assert not show.after_slo(made.slo_rate(), "brim loadtest u m", made.TARGET, overload=False)


def test_what_it_is_not_valid_for_takes_three_lines_of_a_narrow_terminal_at_most() -> None:
    for told in (
        show.scope(made.answer(ci_kind="within_run"), dataclasses.replace(made.TARGET, server=embedded())),
        rates.slo_lines(made.slo_rate(), "image")[-1],
    ):
        assert told.startswith("not valid for ") and len(textwrap.wrap(told, 74)) <= 3


def test_a_server_that_brim_cannot_restart_is_not_told_to_be() -> None:
    told = show.next_step(made.answer(ci_kind="within_run"), made.TARGET)
    assert "--starts" not in told.removeprefix("next: ") or told.startswith("next: brim report")


def test_what_it_is_not_valid_for_names_shared_cores_only_where_they_are_shared() -> None:
    shared = dataclasses.replace(made.TARGET, server=embedded())
    pinned = dataclasses.replace(made.TARGET, server=dataclasses.replace(embedded(), cpus=(1,)))
    assert "client and server shared them" in " ".join(words.not_valid_for(made.answer(), shared))
    assert "a server with its cores to itself" in show.scope(made.answer(), shared)
    assert "cores to itself" not in show.scope(made.answer(), pinned) + show.scope(made.answer(), made.TARGET)
    assert show.opening(made.TARGET, made.MACHINE) == (
        "http://127.0.0.1:8000, Triton 2.51.0, on AMD EPYC, 2 cores, 24 GiB, no GPU"
    )
