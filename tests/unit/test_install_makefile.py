"""The Makefile: thin, documented, and right about `export`, which is a word of make itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from brim import layout
from brim.cli import VERBS
from install.layers import TARGETS

MAKEFILE = (layout.CHECKOUT / "Makefile").read_text("utf-8")
RULES = set(re.findall(r"(?m)^([a-z][a-z-]*):", MAKEFILE))


def environment() -> dict[str, str]:
    """This one's, without what `make test ARGS=…` hands down to here."""
    own = set(re.findall(r"\$\((?:if |filter-out embedded,\$\()?([A-Z]+)", MAKEFILE))
    return {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key not in own}


def make(*words: str) -> str:
    env = environment()
    # The first name that make tries answers at once here: shims may take a second each.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "python3.12").symlink_to(sys.executable)
        return _make(words, {**env, "PATH": f"{folder}:{env['PATH']}"})


def _make(words: tuple[str, ...], env: dict[str, str]) -> str:
    done = subprocess.run(["make", *words], cwd=layout.CHECKOUT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(*words: str) -> list[str]:
    return [line for line in make("-n", *words).splitlines() if "-m install" not in line]


def test_every_target_is_phony_and_has_a_line_of_help() -> None:
    phony = re.findall(r"(?m)^\.PHONY: (.*)$", MAKEFILE)
    assert set(" ".join(phony).split()) == RULES == set(re.findall(r"(?m)^## ([a-z-]+) ", MAKEFILE))


def test_nothing_runs_side_by_side() -> None:
    assert "\n.NOTPARALLEL:\n" in MAKEFILE


def test_export_stands_alone_on_its_line() -> None:
    assert "\nexport:\n" in MAKEFILE


def test_help_lists_every_target() -> None:
    listed = make("help", "PYTHON=/nonexistent")
    assert all(f"  make {name} " in listed for name in RULES)


def test_the_one_command_of_the_readme_runs_the_three_stages_in_order() -> None:
    assert commands("export", "serve", "loadtest") == [
        ".venv/bin/brim export", ".venv/bin/brim serve --run", ".venv/bin/brim loadtest --slo-ms auto",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["loadtest", "MODEL=resnet50", "CONFIG=b8"], "loadtest resnet50__b8 --slo-ms auto"),
        (["loadtest", "MODEL=resnet50"], "loadtest resnet50__b4 --slo-ms auto"),
        (["loadtest", "MODEL=resnet50__b8", "SENDERS=2"], "loadtest resnet50__b8 --senders 2 --slo-ms auto"),
        (["loadtest", "URL=http://h:8000", "MODEL=m"], "loadtest http://h:8000 m --slo-ms auto"),
        (["loadtest", "MODEL=resnet50", "SLO_MS=50"], "loadtest resnet50__b4 --slo-ms 50"),
        (["loadtest", "SLO_MS=none"], "loadtest"),
        (["loadtest", "ARGS=--rate 5"], "loadtest --rate 5"),
        (["loadtest", "ARGS=--items-per-request 4"], "loadtest --items-per-request 4"),
        (["loadtest", "CONCURRENCY=16", "OUT=there"], "loadtest --concurrency 16 --out there"),
        (["serve", "MODE=docker", "CONFIG=b8"], "serve --config b8 --mode docker --run"),
        (["serve", "MODE=remote", "URL=http://h:8000"], "serve --mode remote --url http://h:8000 --run"),
        (["export", "MODEL=resnet50", "ARGS=--json"], "export resnet50 --json"),
        (["bundle", "HAVE=freeze.txt"], "bundle --have freeze.txt"),
    ],
)
def test_variables_reach_the_command(words: list[str], command: str) -> None:
    assert commands(*words) == [f".venv/bin/brim {command}"]


def test_gpu_check_with_a_python_sets_nothing_up() -> None:
    said = make("-n", "gpu-check", "PYTHON=python3", "ARGS=--json").splitlines()
    assert said[-1] == "python3 -m brim gpu-check --json"
    assert [line for line in said if "install" in line] == [line for line in said if "-m install platform" in line]
    assert "-m install ensure" in make("-n", "gpu-check")


def test_a_server_that_is_elsewhere_needs_no_binaries_here() -> None:
    assert "--for serve-elsewhere" in make("-n", "serve", "URL=http://h:8000")


def test_mlperf_loadgen_is_set_up_only_where_it_is_asked_for() -> None:
    assert "--for calibrate-loadgen\n" in make("-n", "calibrate", "ARGS=--loadgen --json")
    assert "--for loadtest\n" in make("-n", "calibrate")


def test_a_config_without_a_model_is_refused_unless_the_same_make_serves_it() -> None:
    words = ["make", "-n", "loadtest", "CONFIG=b8"]
    refused = subprocess.run(words, cwd=layout.CHECKOUT, env=environment(), capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2 and "make loadtest MODEL=resnet50 CONFIG=b8" in refused.stderr
    assert commands("serve", "loadtest", "CONFIG=b8") == [
        ".venv/bin/brim serve --config b8 --run", ".venv/bin/brim loadtest --slo-ms auto",
    ]  # fmt: skip


def test_every_target_that_sets_up_names_needs_that_exist() -> None:
    asked = re.findall(r"\$\(ensure\) (.*)", MAKEFILE)
    words = {
        word
        for line in asked
        for word in re.findall(r"[a-z][a-z-]*", re.sub(r"\$\((if|filter-out|filter --loadgen)", "", line))
    }
    assert words - {"embedded"} <= set(TARGETS)


def test_every_brim_command_behind_a_target_is_built() -> None:
    verbs = set(re.findall(r"\$\(BRIM\)\)? ([a-z-]+)", MAKEFILE))
    assert verbs == {
        "demo", "export", "serve", "loadtest", "calibrate", "report", "status", "down", "doctor", "gpu-check", "bundle",
    }  # fmt: skip
    assert all(VERBS[verb][0] is not None for verb in verbs)
