"""Sets up what one make target needs, once: `.venv/`, the binaries, the stub's environment.

Reads: install/. Writes: .venv/, .tools/, lines on stderr.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brim import layout
from install import binaries, venvs
from install.layers import Needs, resolved
from install.locks import LOCKS
from install.platform_check import PythonFacts

EXCLUSIVE = (("export-cpu", "export-gpu"),)


def ensure(needs: Needs, python: PythonFacts, *, device: str, binaries_run: bool, system_site: bool = False) -> None:
    """Bring the checkout to what `needs` names; silent and quick where nothing is to be done."""
    start = time.monotonic()
    with alone():
        worked = _tool(needs, python, device, system_site)
        if needs.binaries and binaries_run:
            worked = _binaries(python) or worked
        if needs.stub and binaries_run and python.embeds:
            worked = _stub(python, device) or worked
    if worked:
        say(f"set-up took {time.monotonic() - start:.0f} s")


def _tool(needs: Needs, python: PythonFacts, device: str, system_site: bool) -> bool:
    if not needs.layers:
        return False
    venv = layout.CHECKOUT / ".venv"
    layers = ("build", *resolved(needs.layers, device))
    found = venvs.found_state(venv)
    wanted = venvs.merged(found, venvs.wanted_state(python, layers, editable=True), exclusive=EXCLUSIVE)
    if found == wanted:
        return False
    heavy = ", several GB with torch" if any(layer.startswith("export") for layer in wanted.layers) else ""
    say(f"set-up: .venv on Python {wanted.version} ({', '.join(wanted.layers)}{heavy})")
    return venvs.ensure(venv, wanted, system_site=system_site)


def _binaries(python: PythonFacts) -> bool:
    if binaries.present(python):
        return False
    say("set-up: .tools, tritonserver and perf_analyzer out of their wheels")
    binaries.place(python)
    stub = layout.tools() / "stub"
    if stub.exists() and not _made_from(stub, python):
        shutil.rmtree(stub)  # another Python's: beside these binaries it would only fail later and less clearly
    return True


def _stub(python: PythonFacts, device: str) -> bool:
    wanted = venvs.wanted_state(python, (f"stub-{device}",), editable=False)
    place = layout.tools() / "stub"
    if venvs.found_state(place) == wanted:
        return False
    say("set-up: .tools/stub, the environment of the server's python models")
    return venvs.ensure(place, wanted)


def _made_from(venv: Path, python: PythonFacts) -> bool:
    found = venvs.found_state(venv)
    return found is not None and (found.python, found.version) == (python.executable, python.dotted)


@contextmanager
def alone() -> Iterator[None]:
    """Two makes in one checkout set up one after the other."""
    handle = os.open(LOCKS, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
