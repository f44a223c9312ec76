"""Makes `.venv/` (the tool) and `.tools/stub/` (what Triton's python stub runs in) hold exactly what their locks name.

Reads: install/locks/, pyproject.toml. Writes: .venv/, .tools/stub/, and in each a stamp that is there only while the
environment is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import asdict, dataclass, replace
from importlib.metadata import distributions
from pathlib import Path

from brim.layout import CHECKOUT
from install.errors import SetupError
from install.locks import COMPILED_ON_MACOS, canonical, digest, lock_file, pins
from install.platform_check import PythonFacts

STAMP = "brim-setup.json"
#: Not in any lock, and not to be pruned: pip comes with the environment, brim is the checkout itself.
_KEEP = frozenset({"pip", "brim"})


@dataclass(frozen=True, kw_only=True)
class State:
    """What an environment was made from; equal states need no work."""

    python: str  # the interpreter behind the environment
    version: str
    layers: dict[str, str]  # layer → digest of its lock
    project: str  # digest of what the editable install depends on; "" where the checkout is not installed


def wanted_state(python: PythonFacts, layers: tuple[str, ...], *, editable: bool) -> State:
    return State(
        python=python.executable,
        version=python.dotted,
        layers={layer: digest(lock_file(python.dotted_minor, layer)) for layer in sorted(layers)},
        project=_project_digest() if editable else "",
    )


def found_state(venv: Path) -> State | None:
    """What the stamp says; None if there is no whole environment."""
    try:
        return State(**json.loads((venv / STAMP).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def merged(found: State | None, wanted: State, *, exclusive: tuple[tuple[str, str], ...]) -> State:
    """The wanted layers beside those already there, less those that exclude each other; on another Python alone."""
    if found is None or (found.python, found.version) != (wanted.python, wanted.version):
        return wanted
    minor = wanted.version.rpartition(".")[0]
    barred = {other for pair in exclusive for layer, other in (pair, pair[::-1]) if layer in wanted.layers}
    others = {layer: lock_file(minor, layer) for layer in found.layers if layer not in barred | wanted.layers.keys()}
    # A layer without a lock is another version's of this checkout: what it held is no longer named, and goes.
    layers = {**wanted.layers, **{layer: digest(lock) for layer, lock in others.items() if lock.is_file()}}
    if set(layers) - {"build", "core"}:
        layers.pop("core", None)  # every other layer holds the core
    return replace(wanted, layers=dict(sorted(layers.items())))


def ensure(venv: Path, wanted: State, *, system_site: bool = False) -> bool:
    """Make `venv` what `wanted` says; False if it was so already. `system_site`: build on the host's own packages."""
    found = found_state(venv)
    if found == wanted:
        return False
    fresh = found is None or (found.python, found.version) != (wanted.python, wanted.version)
    (venv / STAMP).unlink(missing_ok=True)  # from here until it is written again, the environment is not whole
    if fresh:
        _create(venv, wanted.python, system_site)
    locks = [lock_file(wanted.version.rpartition(".")[0], layer) for layer in wanted.layers]
    pruned = _prune(venv, locks)
    try:
        _pip(venv, *_install_words(), *(word for lock in locks for word in ("-r", str(lock))))
    except SetupError:
        if found is not None and not fresh and not pruned:  # pip takes back what it could not finish (no network, say)
            _stamp(venv, found)
        raise
    if wanted.project:
        _pip(venv, "install", "--no-deps", "--no-build-isolation", "--no-index", "-e", str(CHECKOUT))
    _stamp(venv, wanted)
    return True


def _stamp(venv: Path, state: State) -> None:
    (venv / STAMP).write_text(json.dumps(asdict(state), indent=2) + "\n", "utf-8")


def _install_words() -> list[str]:
    words = ["install", "--require-hashes", "--only-binary=:all:"]
    if sys.platform == "darwin":
        words.append(f"--no-binary={COMPILED_ON_MACOS}")
    # Compiled at first import: compiling all of torch here costs more than it ever gives back.
    return [*words, "--no-compile"]


def _create(venv: Path, python: str, system_site: bool) -> None:
    if venv.exists():
        shutil.rmtree(venv)
    words = ["--system-site-packages"] if system_site else []
    done = subprocess.run([python, "-m", "venv", *words, str(venv)], capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise SetupError(f"{python} could not make {venv.name}: {said[-1] if said else done.returncode}")


def _prune(venv: Path, locks: list[Path]) -> list[str]:
    """Uninstall what no lock names: so onnxruntime goes before onnxruntime-gpu comes."""
    wanted = {name for lock in locks for name in pins(lock.read_text("utf-8"))} | _KEEP
    site = next(iter(sorted(venv.glob("lib/python3.*/site-packages"))), None)
    if site is None:
        raise SetupError(f"{venv} has no site-packages: remove it and run make again")
    there = {canonical(found.metadata["Name"]) for found in distributions(path=[str(site)])}
    if surplus := sorted(there - wanted):
        _pip(venv, "uninstall", "-y", *surplus)
    return surplus


def _pip(venv: Path, *words: str) -> None:
    # -qq: errors only; what a machine's own pip settings make pip warn about is not the user's concern here.
    command = [str(venv / "bin" / "python"), "-m", "pip", "-qq", "--disable-pip-version-check", *words]
    env = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    env.pop("PYTHONPATH", None)  # or pip would take another environment's packages for installed
    done = subprocess.run(command, env=env, stdout=sys.stderr, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise SetupError(
            f"pip {words[0]} failed for {venv.name} (its reason stands above): run make again; "
            "what was fetched stays in pip's cache"
        )


def _project_digest() -> str:
    """Of what the editable install is made from: not of the tools' settings that share the file."""
    table = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))
    parts = {"project": table["project"], "setuptools": table["tool"]["setuptools"], "root": str(CHECKOUT)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8")).hexdigest()
