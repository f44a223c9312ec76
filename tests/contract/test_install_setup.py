"""The set-up with the real pip: binaries that run, an environment that is made once, a bundle without internet."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from brim import disk, layout
from install import binaries, bundle, pythons, setup, venvs
from install.errors import SetupError
from install.locks import digest, lock_file, pins

pytestmark = pytest.mark.contract

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
#: pip cannot reach anything: no index, and a proxy that nobody listens on.
OFFLINE = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}


def test_the_binaries_run_and_are_those_of_the_manifest() -> None:
    binaries.verify()
    written = json.loads(layout.tools_manifest().read_text("utf-8"))["binaries"]
    assert written["tritonserver"] == disk.sha256(layout.tritonserver())
    assert written["perf_analyzer"] == disk.sha256(layout.perf_analyzer())


def test_the_stub_environment_has_numpy_1_and_one_runtime() -> None:
    code = "import numpy, onnxruntime; print(numpy.__version__, onnxruntime.get_available_providers())"
    done = subprocess.run([str(layout.stub_python()), "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1.26.")


def test_a_second_setup_does_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    words = [sys.executable, "-m", "install", "ensure", "--for", "test"]
    subprocess.run(words, cwd=layout.CHECKOUT, check=True, timeout=30)
    assert capfd.readouterr().err == ""


def test_a_wheel_of_another_digest_is_refused_by_the_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "brim_probe-1.0-py3-none-any.whl"
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / name, "w") as wheel:
        wheel.writestr("brim_probe-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: brim-probe\nVersion: 1.0\n")
        wheel.writestr(
            "brim_probe-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("brim_probe-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    right = disk.sha256(tmp_path / "wheels" / name)
    good = binaries.Wheel(part="good", name="brim-probe", version="1.0", sha256=right)
    assert binaries.fetch(good, tmp_path).name == name
    with pytest.raises(SetupError, match="was not fetched"):
        binaries.fetch(binaries.Wheel(part="bad", name="brim-probe", version="1.0", sha256="0" * 64), tmp_path)


def test_an_environment_follows_its_locks_and_a_failed_step_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = pythons.probe(sys.executable)
    assert python is not None
    venv = tmp_path / "venv"
    build = venvs.wanted_state(python, ("build",), editable=False)
    assert venvs.ensure(venv, build) is True
    assert venvs.ensure(venv, build) is False
    assert packages(venv) == {"pip", "setuptools"}
    core = venvs.wanted_state(python, ("core",), editable=False)
    assert venvs.ensure(venv, core) is True
    assert packages(venv) >= {"pip", "click"} and "setuptools" not in packages(venv)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(SetupError, match="pip install failed"):
        venvs.ensure(venv, venvs.wanted_state(python, ("analysis",), editable=False))
    assert venvs.found_state(venv) == core and core.layers == {"core": digest(lock_file(MINOR, "core"))}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked bundle of the smallest target: the code path of the whole, and five wheels."""
    place = tmp_path_factory.mktemp("bundle")
    archive, notes = bundle.bundle(place / "out", None, MINOR, target="bundle")
    assert notes == []
    return unpack(archive, place)


def test_a_bundle_sets_brim_up_in_an_empty_folder_without_internet(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    done = offline(["sh", str(packed / "install.sh"), str(folder), sys.executable], tmp_path)
    assert done.returncode == 0, done.stderr
    brim = offline([str(folder / ".venv/bin/brim"), "--help"], tmp_path)
    assert brim.returncode == 0 and "loadtest" in brim.stdout
    again = offline([sys.executable, "-m", "install", "ensure", "--for", "bundle"], folder)
    assert (again.returncode, again.stderr) == (0, ""), "make on that host finds everything in place"
    assert packages(folder / ".venv") == {
        *pins(lock_file(MINOR, "core").read_text("utf-8")),
        "brim",
        "pip",
        "setuptools",
    }


def test_a_damaged_bundle_installs_nothing(packed: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(packed, damaged)
    wheel = next((damaged / "wheels").glob("click-*.whl"))
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"?")
    done = offline(["sh", str(damaged / "install.sh"), str(tmp_path / "new"), sys.executable], tmp_path)
    assert done.returncode == 2 and wheel.name in done.stderr and "damaged" in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_bundle_leaves_out_what_the_target_has_and_stands_on_it(tmp_path: Path) -> None:
    have = tmp_path / "freeze.txt"
    have.write_text(lock_file(MINOR, "core").read_text("utf-8"), "utf-8")  # pins are a freeze's lines
    archive, _ = bundle.bundle(tmp_path / "out", have, MINOR, target="bundle")
    manifest = json.loads((unpack(archive, tmp_path) / "manifest.json").read_text("utf-8"))
    assert manifest["system_site_packages"] is True
    assert any(name.startswith("click==") for name in manifest["left_out"])
    assert [name for name in manifest["files"] if "/click-" in name] == []


def test_two_setups_in_one_checkout_wait_for_each_other() -> None:
    words = [sys.executable, "-m", "install", "ensure", "--for", "test"]
    with setup.alone():
        child = subprocess.Popen(words, cwd=layout.CHECKOUT)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=2)
    assert child.wait(timeout=30) == 0


def unpack(archive: Path, into: Path) -> Path:
    """As a user does it: tarfile's own filter is missing from Python 3.11.2, and its absence warns later."""
    subprocess.run(["tar", "-xf", str(archive), "-C", str(into)], check=True)
    return into / archive.stem


def offline(words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))}
    return subprocess.run(words, cwd=cwd, env={**env, **OFFLINE}, capture_output=True, text=True, timeout=240)


def packages(venv: Path) -> set[str]:
    done = subprocess.run(
        [str(venv / "bin" / "python"), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {str(found["name"]).lower() for found in json.loads(done.stdout)}
