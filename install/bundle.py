"""Packs one archive for a host without internet: wheels, binaries, libpython, the checkout, digests, an install script.

Reads: install/locks/, install/tools.toml, the package index, the checkout. Writes: OUT/brim-VERSION-py3xx-DEVICE.tar.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

from brim import disk, layout
from install import binaries, pythons
from install.errors import SetupError
from install.layers import TARGETS, Needs, resolved
from install.locks import MINORS, STUB_MINORS, canonical, lock_file, pins
from install.offline import SCHEMA

#: What of a checkout is Brim: the packages of pyproject.toml come on top.
_CHECKOUT = ("pyproject.toml", "Makefile", "README.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", ".gitignore")
_FOLDERS = ("docs", "docker", "tests", "benchmarks", "model_repository/README.md")
_SKIP = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info", ".*_cache")

# The wheels' platforms, newest first: pip takes only those that are named.
_PLATFORMS = (*(f"manylinux_2_{glibc}" for glibc in range(35, 4, -1)), "manylinux2014", "manylinux2010", "manylinux1")

_INSTALL_SH = """#!/bin/sh
# Sets Brim up from this bundle, without internet: sh install.sh FOLDER [PYTHON]
# FOLDER is empty or does not exist yet. Every digest of manifest.json is checked before anything is installed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?"usage: sh install.sh FOLDER [PYTHON]"}
exec "${2:-python@MINOR@}" -I "$here/install.py" "$folder"
"""


def bundle(
    out: Path, have: Path | None, python: str, *, device: str = "cpu", target: str = "offline"
) -> tuple[Path, list[str]]:
    """Pack what `target` needs on a Python of minor `python`, less what `have` (a pip freeze) holds.

    Returns the archive and what its user must be told, one line each.
    """
    if python not in MINORS:
        raise SetupError(f"bundle: there is no lock for Python {python}; there are {', '.join(MINORS)}")
    needs = TARGETS[target]
    there = frozen(have.read_text("utf-8")) if have is not None else {}
    version = str(_project()["version"])
    disk.make_folder(out)
    archive = out / f"brim-{version}-py{python.replace('.', '')}-{device}.tar"
    with tempfile.TemporaryDirectory(dir=out, prefix=".bundle-") as scratch:
        stage = Path(scratch) / archive.stem
        left_out = _wheels(stage, needs, python, device, there)
        notes = _libpython(stage, python) if needs.stub else []
        _checkout(stage / "checkout")
        _scripts(stage, python)
        _manifest(stage, {"brim": version, "python": python, "device": device, "target": target,
                          "system_site_packages": bool(left_out), "left_out": left_out})  # fmt: skip
        part = archive.with_suffix(".part")
        with tarfile.open(part, "w") as tar:
            tar.add(stage, arcname=stage.name)
        part.replace(archive)
    return archive, notes


def frozen(text: str) -> dict[str, str]:
    """Name → version of `pip freeze` or `pip list --format=freeze`; lines that name no version are not there."""
    found = pins(text)
    # 2.15.0+cu132 meets a lock's 2.15.0: a build of the same version, and what a GPU host has.
    return {name: version.split("+")[0] for name, version in found.items()}


def missing(lock: str, have: dict[str, str]) -> tuple[str, list[str]]:
    """The lock less the requirements that `have` meets exactly, and what was left out."""
    kept: list[str] = []
    left_out: list[str] = []
    keep = True
    for line in lock.splitlines(keepends=True):
        if not line.startswith((" ", "#")):
            name, version = next(iter(pins(line).items()), ("", ""))
            keep = not name or have.get(canonical(name)) != version
            if not keep:
                left_out.append(f"{name}=={version}")
        if keep:
            kept.append(line)
    return "".join(kept), left_out


def _wheels(stage: Path, needs: Needs, python: str, device: str, have: dict[str, str]) -> list[str]:
    """Fetch the wheels into the stage; returns what was left out because the target has it."""
    folder = stage / "wheels"
    folder.mkdir(parents=True)
    left_out: set[str] = set()
    for layer in ("build", *resolved(needs.layers, device)):
        lock, less = missing(lock_file(python, layer).read_text("utf-8"), have)
        left_out.update(less)
        _download(lock, folder, python)
    if needs.stub and python in STUB_MINORS:  # this environment stands alone, whatever the target has
        _download(lock_file(python, f"stub-{device}").read_text("utf-8"), folder, python)
    if needs.binaries:
        for wheel in binaries.wheels():
            _download(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n", folder, python)
    return sorted(left_out)


def _download(lock: str, folder: Path, python: str) -> None:
    if not pins(lock):
        return
    requirements = folder.parent / "requirements.txt"
    requirements.write_text(lock, "utf-8")
    command = [str(layout.venv_python()), "-m", "pip", "-qq", "--disable-pip-version-check", "download"]
    command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "-d", str(folder), "-r", str(requirements)]
    command += ["--implementation", "cp", "--python-version", python]
    command += [word for platform in _PLATFORMS for word in ("--platform", f"{platform}_x86_64")]
    done = subprocess.run(command, stdout=sys.stderr, stdin=subprocess.DEVNULL)
    requirements.unlink()
    if done.returncode != 0:
        raise SetupError("bundle: pip could not fetch a wheel (its reason stands above): run it again")


def _libpython(stage: Path, python: str) -> list[str]:
    """Carry this host's libpython of that minor along; a host whose own Python has none then uses it."""
    found = pythons.probe(f"python{python}")
    if found is None or found.libpython is None:
        return [
            f"libpython{python}.so.1.0 is not in the bundle: no Python {python} with it here; the target needs its own"
        ]
    folder = stage / "libpython"
    folder.mkdir()
    shutil.copyfile(found.libpython, folder / f"libpython{python}.so.1.0")
    return []


def _checkout(into: Path) -> None:
    packages = _table("tool", "setuptools")["packages"]
    assert isinstance(packages, list)
    for name in (*_CHECKOUT, *_FOLDERS, *packages):
        source, target = layout.CHECKOUT / name, into / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=_SKIP)
        elif source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _scripts(stage: Path, python: str) -> None:
    shutil.copyfile(layout.CHECKOUT / "install" / "offline.py", stage / "install.py")
    script = stage / "install.sh"
    script.write_text(_INSTALL_SH.replace("@MINOR@", python), "utf-8")
    script.chmod(0o755)


def _manifest(stage: Path, says: dict[str, object]) -> None:
    files = sorted(path for path in stage.rglob("*") if path.is_file())
    digests = {str(path.relative_to(stage)): disk.sha256(path) for path in files}
    text = json.dumps({"schema": SCHEMA, **says, "files": digests}, indent=2) + "\n"
    (stage / "manifest.json").write_text(text, "utf-8")


def _project() -> dict[str, object]:
    return _table("project")


def _table(*keys: str) -> dict[str, object]:
    table = tomllib.loads((layout.CHECKOUT / "pyproject.toml").read_text("utf-8"))
    for key in keys:
        table = table[key]
    return table
