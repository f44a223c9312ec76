"""Gathers what `brim doctor` judges.

Reads: the operating system, .tools/ (both programs are run once). Writes: nothing.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from brim import disk, layout
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
    driver = host.nvidia_driver_answers()
    return Facts(
        system=f"{platform.system()} {platform.machine()}",
        glibc=_glibc(),
        own_python=platform.python_version(),
        tools=tools,
        stub=stub,
        stub_problem=problem,
        changed_binaries=_changed_binaries(prerequisites.read_manifest()),
        server_problem=_refuses(layout.tritonserver(), ["--help"], layout.triton_libraries()),
        perf_analyzer_problem=_refuses(layout.perf_analyzer(), ["--version"], layout.perf_analyzer_libraries()),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        all_cores=os.cpu_count() or 1,
        ports={port: _holder(port) for port in _PORTS},
        shm_bytes=shm.total if shm else 0,
        shm_free_bytes=shm.free if shm else 0,
        memory_bytes=_available_memory_bytes(),
        disk_free_bytes=host.free_bytes(next(p for p in (out, *out.absolute().parents) if p.is_dir())),
        gpu=host.gpu_name() if driver else None,
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


def _glibc() -> tuple[int, int] | None:
    try:
        version = ctypes.CDLL(None).gnu_get_libc_version
    except (AttributeError, OSError, TypeError):
        return None
    version.restype = ctypes.c_char_p
    found = re.match(r"(\d+)\.(\d+)", version().decode("ascii"))
    return (int(found.group(1)), int(found.group(2))) if found else None


def _changed_binaries(manifest: Mapping[str, object]) -> tuple[str, ...] | None:
    """Names of binaries whose digest is not the one that set-up wrote down."""
    expected = manifest.get("binaries")
    if not isinstance(expected, dict):
        return None
    backend = layout.triton_backends() / "python"
    places = {"tritonserver": layout.tritonserver(), "perf_analyzer": layout.perf_analyzer()}
    return tuple(
        name
        for name, digest in sorted(expected.items())
        if not (path := places.get(name, backend / name)).is_file() or disk.sha256(path) != digest
    )


def _refuses(program: Path, words: Sequence[str], libraries: Path) -> str | None:
    """Why a program does not run here, None if it does; neither promises its exit code for these words."""
    if not program.exists():
        return "not there"
    env = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    try:
        done = subprocess.run(
            [str(program), *words], env=env, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = (done.stdout + done.stderr).strip()
    lines = said.splitlines() or [f"exit code {done.returncode}, no output"]
    problems = [line for line in lines if "error while loading" in line or "not found (required by" in line]
    return (problems or lines)[0] if problems or not said else None


def _holder(port: int) -> str:
    holder = holder_of(port)
    return f"pid {holder[0]} ({holder[1]})" if holder else ""


def _available_memory_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
