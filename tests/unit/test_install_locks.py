"""What the lock files promise: digests, no index, parts kept apart, one universe."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from brim import disk, layout
from install import binaries, venvs
from install.errors import DigestMismatch
from install.layers import EXTRAS
from install.locks import LOCKS, MINORS, STUB_MINORS, digest, lock_file, pins, without_common_marker
from install.venvs import State

ALL = sorted(LOCKS.rglob("*.txt"))


def names(minor: str, layer: str) -> set[str]:
    return set(pins(lock_file(minor, layer).read_text("utf-8")))


def test_every_layer_is_locked_for_every_python_and_the_stub_for_those_that_embed() -> None:
    expected = {lock_file(minor, layer) for minor in MINORS for layer in (*EXTRAS, "build")}
    expected |= {lock_file(minor, f"stub-{device}") for minor in STUB_MINORS for device in ("cpu", "gpu")}
    assert set(ALL) == expected | {LOCKS / "resolver.txt"}


@pytest.mark.parametrize("lock", ALL, ids=lambda lock: str(lock.relative_to(LOCKS)))
def test_a_lock_holds_pins_with_digests_and_nothing_else(lock: Path) -> None:
    blocks = re.split(r"(?m)^(?=[^\s#])", lock.read_text("utf-8"))[1:]
    assert blocks
    for block in blocks:
        first, *rest = block.rstrip("\n").splitlines()
        assert re.fullmatch(r"[a-z0-9.-]+==[^\s;]+( ; [^\\]+)? \\", first), first
        assert rest and all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in rest), first


@pytest.mark.parametrize("lock", ALL, ids=lambda lock: str(lock.relative_to(LOCKS)))
def test_a_lock_names_no_index_no_host_and_no_path(lock: Path) -> None:
    text = lock.read_text("utf-8")
    assert not re.search(r"://|--index|--extra-index|--find-links|--trusted-host|\.org|\.io\b", text)
    assert "/" not in text.replace("`make lock`", "")


@pytest.mark.parametrize("minor", MINORS)
def test_layers_have_no_markers_because_a_bundle_is_made_on_another_python(minor: str) -> None:
    for layer in (*EXTRAS, "build"):
        assert " ; " not in lock_file(minor, layer).read_text("utf-8"), layer


@pytest.mark.parametrize("minor", MINORS)
def test_all_layers_of_a_python_agree_on_every_version(minor: str) -> None:
    versions: dict[str, set[str]] = {}
    for layer in (*EXTRAS, "build"):
        for name, version in pins(lock_file(minor, layer).read_text("utf-8")).items():
            versions.setdefault(name, set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


@pytest.mark.parametrize("minor", MINORS)
def test_the_parts_are_kept_apart(minor: str) -> None:
    load, serve, analysis = names(minor, "load"), names(minor, "serve"), names(minor, "analysis")
    runtimes = {"torch", "onnxruntime", "onnxruntime-gpu"}
    assert not load & runtimes and not serve & runtimes
    assert not analysis & {"tritonclient", "locust", "gevent", *runtimes}
    assert "mlcommons-loadgen" in names(minor, "loadgen") - load - serve
    assert {"locust", "tritonclient", "gevent"} <= load and {"numpy", "scipy", "polars"} <= analysis <= load


@pytest.mark.parametrize("minor", MINORS)
def test_no_environment_gets_both_runtimes(minor: str) -> None:
    pair = {"onnxruntime", "onnxruntime-gpu"}
    assert names(minor, "export-cpu") & pair == {"onnxruntime"}
    assert names(minor, "export-gpu") & pair == {"onnxruntime-gpu"}
    for layer in ("core", "analysis", "load", "serve", "dev", "build"):
        assert not names(minor, layer) & pair, layer


@pytest.mark.parametrize("minor", STUB_MINORS)
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_stub_has_numpy_1_and_the_tools_own_runtime(minor: str, device: str) -> None:
    stub = pins(lock_file(minor, f"stub-{device}").read_text("utf-8"))
    tool = pins(lock_file(minor, f"export-{device}").read_text("utf-8"))
    runtime = {"cpu": "onnxruntime", "gpu": "onnxruntime-gpu"}[device]
    assert stub["numpy"].startswith("1.26.") and tool["numpy"].startswith("2.")
    assert stub[runtime] == tool[runtime]
    assert "torch" not in stub


@pytest.mark.parametrize("minor", MINORS)
def test_every_direct_dependency_of_the_project_is_locked(minor: str) -> None:
    project = tomllib.loads((layout.CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
    for layer, extras in EXTRAS.items():
        wanted = [*project["dependencies"], *(n for e in extras for n in project["optional-dependencies"][e])]
        direct = {re.split(r"[\[<>=]", need)[0] for need in wanted} - {"brim"}
        assert direct <= names(minor, layer), layer


def test_a_marker_that_all_bear_is_dropped_and_one_that_some_bear_stays() -> None:
    common = "a==1 ; os == 'x' \\\n    --hash=sha256:00\nb==2 ; os == 'x' \\\n    --hash=sha256:11\n"
    assert without_common_marker(common) == "a==1 \\\n    --hash=sha256:00\nb==2 \\\n    --hash=sha256:11\n"
    mixed = common.replace("b==2 ; os == 'x'", "b==2 ; os == 'y'")
    assert without_common_marker(mixed) == mixed


# ---- which state an environment is brought to


def state(*layers: str, version: str = "3.11.7") -> State:
    minor = version.rpartition(".")[0]
    locked = {layer: digest(lock_file(minor, layer)) for layer in layers}
    return State(python=f"/usr/bin/python{minor}", version=version, layers=locked, project="p")


PAIR = (("export-cpu", "export-gpu"),)


def test_layers_add_up() -> None:
    assert venvs.merged(state("load"), state("dev"), exclusive=PAIR) == state("dev", "load")


def test_a_device_that_changed_takes_the_other_runtime_out() -> None:
    assert venvs.merged(state("export-cpu", "load"), state("export-gpu"), exclusive=PAIR) == state("export-gpu", "load")


def test_the_core_is_in_every_layer_and_no_work_of_its_own() -> None:
    assert venvs.merged(state("build", "load"), state("build", "core"), exclusive=PAIR) == state("build", "load")
    assert venvs.merged(state("build", "core"), state("build", "load"), exclusive=PAIR) == state("build", "load")
    assert venvs.merged(None, state("build", "core"), exclusive=PAIR) == state("build", "core")


def test_another_python_starts_anew() -> None:
    assert venvs.merged(state("load", version="3.12.1"), state("dev"), exclusive=PAIR) == state("dev")


def test_a_layer_of_another_version_of_the_checkout_goes_as_no_lock_names_it_any_more() -> None:
    found = state("load")
    foreign = replace(found, layers={**found.layers, "of-another-branch": "0" * 64})
    assert venvs.merged(foreign, state("dev"), exclusive=PAIR) == state("dev", "load")


def test_a_lock_that_changed_is_work_and_one_that_did_not_is_none() -> None:
    old = state("load")
    stale = State(python=old.python, version=old.version, layers={"load": "0" * 64}, project="p")
    assert venvs.merged(old, state("load"), exclusive=PAIR) == old
    assert venvs.merged(stale, state("load"), exclusive=PAIR) == old != stale


def test_an_environment_without_its_stamp_is_not_whole(tmp_path: Path) -> None:
    assert venvs.found_state(tmp_path) is None
    (tmp_path / venvs.STAMP).write_text("{}", "utf-8")
    assert venvs.found_state(tmp_path) is None
    (tmp_path / venvs.STAMP).write_text(
        json.dumps({"python": "p", "version": "v", "layers": {}, "project": ""}), "utf-8"
    )
    assert venvs.found_state(tmp_path) == State(python="p", version="v", layers={}, project="")


# ---- binaries


def test_the_wheels_of_the_binaries_are_named_by_digest() -> None:
    found = {wheel.part: wheel for wheel in binaries.wheels()}
    assert set(found) == {"triton", "perf_analyzer"}
    assert all(re.fullmatch(r"[0-9a-f]{64}", wheel.sha256) for wheel in found.values())


def test_a_file_of_another_digest_is_refused_in_one_line(tmp_path: Path) -> None:
    wheel = tmp_path / "server.whl"
    wheel.write_bytes(b"not the server")
    binaries.check(wheel, disk.sha256(wheel))
    with pytest.raises(DigestMismatch) as refused:
        binaries.check(wheel, "0" * 64)
    assert "server.whl" in str(refused.value) and "\n" not in str(refused.value) and refused.value.exit_code == 6
