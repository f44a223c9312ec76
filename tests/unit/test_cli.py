"""The front door: verbs, errors as one line, exit codes, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from brim.cli import VERBS
from brim.errors import EXIT_PRECEDENCE, worst_exit
from tests.measuring import heard_of

CHECKOUT = Path(__file__).resolve().parents[2]


def brim(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "brim", *arguments], capture_output=True, text=True, cwd=CHECKOUT, timeout=60
    )


def test_help_names_every_verb_of_the_contract() -> None:
    done = brim("--help")
    assert done.returncode == 0
    contract = "export serve down status loadtest calibrate fill study sweep compare plan report doctor gpu-check demo"
    assert {*contract.split(), "bundle"} == set(VERBS)
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS)


def test_a_verb_that_is_not_built_yet_answers_help_and_otherwise_exits_2(capfd: pytest.CaptureFixture[str]) -> None:
    told = heard_of("plan", "--help", capfd=capfd)
    assert told.code == 0
    assert "Not built yet" in told.answers
    refused = heard_of("plan", "--peak", "100", capfd=capfd)
    assert refused.code == 2
    assert refused.errors == [
        "brim: plan is not built yet; `brim --help` says what is",
        "brim: exit 2 (usage)",
    ]


def test_an_unknown_verb_is_one_line_with_the_verb_that_was_meant(capfd: pytest.CaptureFixture[str]) -> None:
    refused = heard_of("lodtest", capfd=capfd)
    assert refused.code == 2
    assert refused.errors == [
        "brim: there is no verb 'lodtest'; did you mean 'loadtest'?",
        "brim: exit 2 (usage)",
    ]


@pytest.mark.parametrize("verb", [v for v, (where, _) in VERBS.items() if where])
def test_every_verb_has_help_and_refuses_an_unknown_flag_in_one_line(
    verb: str, capfd: pytest.CaptureFixture[str]
) -> None:
    helped = heard_of(verb, "--help", capfd=capfd)
    assert helped.code == 0 and helped.answers.startswith(f"Usage: brim {verb} ")
    refused = heard_of(verb, "--no-such-flag", capfd=capfd)
    assert refused.code == 2
    assert len(refused.errors) == 2
    assert "--no-such-flag" in refused.errors[0]


def test_a_flag_with_a_letter_missing_is_told_which_one_was_meant(capfd: pytest.CaptureFixture[str]) -> None:
    refused = heard_of("loadtest", "m__b4", "--concurency", "4", capfd=capfd)
    assert refused.code == 2
    assert len(refused.errors) == 2
    assert "'--concurency'" in refused.errors[0] and "Did you mean '--concurrency'?" in refused.errors[0]


@pytest.mark.parametrize(
    ("codes", "worst"),
    [([], 0), ([0, 0], 0), ([0, 1], 1), ([1, 7], 7), ([7, 4], 4), ([4, 2], 2), ([2, 3], 3), ([3, 6], 6), ([6, 5], 5),
     ([5, 143], 143), ([143, 130], 130), ([130, 70], 70), ([99], 70)],
)  # fmt: skip
def test_the_exit_code_of_several_variants_is_the_first_that_applies(codes: list[int], worst: int) -> None:
    assert worst_exit(codes) == worst
    assert worst_exit(reversed(codes)) == worst
    assert EXIT_PRECEDENCE == (70, 130, 143, 5, 6, 3, 2, 4, 7, 1, 0)


SLOW_VERB = """
import sys, time, brim.cli as cli, types, click
@cli.verb("wait")
def wait(say, out):
    try:
        deadline = time.monotonic() + 30
        print("up", flush=True)
        while time.monotonic() < deadline: time.sleep(0.05)
    finally:
        print("orderly", flush=True)
        if {twice}:
            while time.monotonic() < deadline: time.sleep(0.05)
module = types.ModuleType("slow"); module.command = wait; sys.modules["slow"] = module
cli.VERBS["status"] = ("slow", "wait")
cli.main(["status"])
"""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("twice", [False, True])
def test_the_first_signal_ends_in_order_and_the_second_at_once(signum: int, code: int, twice: bool) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW_VERB.format(twice=twice)], cwd=CHECKOUT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "up\n"
    os.kill(child.pid, signum)
    assert child.stdout.readline() == "orderly\n"
    if twice:
        os.kill(child.pid, signum)
    _, errors = child.communicate(timeout=10)
    assert child.returncode == code
    assert "Traceback" not in errors
    assert errors.splitlines() == ([] if twice else [f"brim: exit {code} (aborted)"])


@pytest.mark.parametrize(
    ("words", "code"),
    [(["loadtest", "--json"], 3), (["plan", "--json"], 2), (["loadtest", "--sendrs", "2", "--json"], 2)],
)
def test_a_command_that_fails_still_gives_exactly_one_document(
    tmp_path: Path, words: list[str], code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path)] if words[0] == "loadtest" else []
    failed = heard_of(*words, *out, capfd=capfd)
    assert failed.code == code
    document = json.loads(failed.answers)
    assert document["exit_code"] == code
    assert document["error"] in failed.errors[0]
