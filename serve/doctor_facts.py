"""Gathers what `brim doctor` judges.

Reads: the operating system, .tools/ (both programs are run once). Writes: nothing.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path

from brim import disk, layout, machine
from brim import tools as placed
from brim.environment import gpus, usable_cores
from brim.errors import BrimError
from serve import docker_engine, host, ledger, prerequisites
from serve.doctor import Facts
from serve.ports import holder_of

_PORTS = (8000, 8001, 8002)


def gather(out: Path) -> Facts:
    """Everything that `judge` looks at."""
    tools = prerequisites.gather_tools()
    stub, problem = _stub(tools)
    shm = shutil.disk_usage(ledger.SHM) if ledger.SHM.is_dir() else None
    driver = machine.nvidia_driver_answers()
    return Facts(
        system=f"{platform.system()} {platform.machine()}",
        glibc=machine.glibc(),
        own_python=platform.python_version(),
        tools=tools,
        stub=stub,
        stub_problem=problem,
        changed_binaries=_changed_binaries(placed.read_manifest()),
        server_problem=placed.server_refuses(),
        perf_analyzer_problem=placed.perf_analyzer_refuses(),
        cores=usable_cores(),
        all_cores=os.cpu_count() or 1,
        ports={port: _holder(port) for port in _PORTS},
        shm_bytes=shm.total if shm else 0,
        shm_free_bytes=shm.free if shm else 0,
        memory_bytes=_available_memory_bytes(),
        disk_free_bytes=host.free_bytes(next(p for p in (out, *out.absolute().parents) if p.is_dir())),
        gpu=(gpus() or None) if driver else None,
        driver=driver,
        docker=docker_engine.answers(),
    )


def _stub(tools: prerequisites.ToolFacts) -> tuple[prerequisites.StubFacts | None, str]:
    if not tools.stub:
        return None, "no Python is set up for it"
    try:
        return prerequisites.probe_stub(layout.stub_python()), ""
    except BrimError as error:
        return None, str(error)


def _changed_binaries(manifest: Mapping[str, object]) -> tuple[str, ...] | None:
    """Names of binaries whose digest is not the one that set-up wrote down."""
    expected = manifest.get("binaries")
    if not isinstance(expected, dict):
        return None
    places = placed.programs()
    return tuple(
        name
        for name, digest in sorted(expected.items())
        if not ((path := places.get(name)) and path.is_file()) or disk.sha256(path) != digest
    )


def _holder(port: int) -> str:
    holder = holder_of(port)
    return f"pid {holder[0]} ({holder[1]})" if holder else ""


def _available_memory_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
