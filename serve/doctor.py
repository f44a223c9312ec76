"""Judges what this machine offers, part by part, each with its fix: pure, from facts that doctor_facts gathers.

Reads, writes: nothing. What the embedded server needs counts (exit 3 if missing, 6 if a resource is short) only where
it could run at all; elsewhere the same line is information.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from brim.machine import EMBEDDED_PYTHONS, MIN_GLIBC
from serve.prerequisites import StubFacts, ToolFacts, missing_tools, unfit_stub

#: A default set of three variants needs about 50 MiB; docker's own default of 64 MB is known to be too little.
MIN_SHM_BYTES = 128 << 20
#: The server, three image models and their generators stay below 3 GiB on a CPU.
MIN_MEMORY_BYTES = 3 << 30
MIN_DISK_BYTES = 2 << 30

_EXIT = {"ok": 0, "info": 0, "missing": 3, "short": 6}
_MARK = {"ok": "ok  ", "info": "info", "missing": "MISS", "short": "LOW "}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What doctor_facts saw."""

    system: str  # Linux x86_64
    glibc: tuple[int, int] | None
    own_python: str  # 3.11.7
    tools: ToolFacts
    stub: StubFacts | None
    stub_problem: str  # why there are no stub facts; "" where there are
    changed_binaries: tuple[str, ...] | None  # those that differ from the manifest; None = there is no manifest
    server_problem: str | None  # why tritonserver does not run here; None = it runs
    perf_analyzer_problem: str | None
    cores: int  # that this process may use
    all_cores: int
    ports: Mapping[int, str]  # port -> who holds it, "" = free
    shm_bytes: int
    shm_free_bytes: int
    memory_bytes: int
    disk_free_bytes: int
    gpu: str | None  # name and driver
    driver: bool
    docker: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of `brim doctor`."""

    part: str
    state: Literal["ok", "info", "missing", "short"]
    said: str
    fix: str = ""

    @property
    def exit_code(self) -> int:
        return _EXIT[self.state]

    @property
    def line(self) -> str:
        return f"{_MARK[self.state]}  {self.part:<17} {self.said}" + (f"; {self.fix}" if self.fix else "")


def judge(facts: Facts) -> list[Finding]:
    """Every part in the order in which a user would mend them."""
    platform = _platform(facts)
    embedded = [_python(facts), _libpython(facts), _binaries(facts), _stub(facts), _perf_analyzer(facts), _shm(facts)]
    if platform.state != "ok":
        embedded = [replace(f, state="info", fix="") if f.exit_code else f for f in embedded]
    return [
        platform,
        *embedded,
        _cores(facts),
        _memory(facts),
        _disk(facts),
        _ports(facts),
        _gpu(facts),
        _docker(facts),
    ]


def _platform(facts: Facts) -> Finding:
    glibc = "another C library" if facts.glibc is None else "glibc {}.{}".format(*facts.glibc)
    said = f"{facts.system}, {glibc}"
    if facts.system in ("Linux x86_64", "Linux amd64") and facts.glibc is not None and facts.glibc >= MIN_GLIBC:
        return Finding(part="platform", state="ok", said=said)
    return Finding(
        part="platform",
        state="info",
        said=f"{said}: the embedded server needs Linux x86_64 with glibc 2.35",
        fix="works here: analysis, and load to a remote server",
    )


def _python(facts: Facts) -> Finding:
    if facts.stub is not None:
        return Finding(part="Python", state="ok", said=f"{facts.own_python}, the server's {facts.stub.python}")
    if facts.tools.own_python in EMBEDDED_PYTHONS:
        return Finding(part="Python", state="ok", said=facts.own_python)
    return Finding(
        part="Python",
        state="missing",
        said=f"{facts.own_python}; the embedded server needs 3.11 or 3.12",
        fix="make PYTHON=/path/to/python3.12 serve",
    )


def _libpython(facts: Facts) -> Finding:
    if facts.stub is None:
        return Finding(part="libpython", state="info", said="not looked for: the server's environment does not run")
    if facts.stub.libpython_folder is None:
        package = f"libpython{facts.stub.minor}"
        return Finding(
            part="libpython",
            state="short",
            said=f"{package}.so.1.0 of Python {facts.stub.python} is not on the loader path",
            fix=f"apt install {package}, or a Python that has it: make PYTHON=/path/to/python serve",
        )
    where = facts.stub.libpython_folder or "the loader's own path"
    return Finding(part="libpython", state="ok", said=f"of Python {facts.stub.python} in {where}")


def _binaries(facts: Facts) -> Finding:
    setup_again = "remove .tools and run `make serve`"
    if not facts.tools.tritonserver or facts.changed_binaries is None:
        return Finding(part="tritonserver", state="missing", said="not there", fix="`make serve` sets it up")
    if facts.changed_binaries:
        changed = ", ".join(facts.changed_binaries)
        return Finding(part="tritonserver", state="missing", said=f"{changed}: not the digest set up", fix=setup_again)
    if facts.server_problem is not None:
        said = f"does not run here: {facts.server_problem}"
        return Finding(part="tritonserver", state="missing", said=said, fix=setup_again)
    return Finding(part="tritonserver", state="ok", said="runs, digests as set up")


def _stub(facts: Facts) -> Finding:
    part = "stub environment"
    if facts.stub is None:
        why = missing_tools(facts.tools) or facts.stub_problem
        said, _, fix = why.partition("; ")
        return Finding(part=part, state="missing", said=said, fix=fix)
    why_unfit = unfit_stub(replace(facts.stub, libpython_folder=""), facts.tools)  # libpython has its own line
    if why_unfit is not None:
        said, _, fix = why_unfit.partition("; ")
        return Finding(part=part, state="missing", said=said, fix=fix)
    if facts.stub.runtime is None:
        fix = "remove .tools/stub and run `make serve`"
        return Finding(part=part, state="missing", said="no ONNX Runtime", fix=fix)
    return Finding(part=part, state="ok", said=f"numpy {facts.stub.numpy}, {facts.stub.runtime}")


def _perf_analyzer(facts: Facts) -> Finding:
    if facts.perf_analyzer_problem is None:
        return Finding(part="perf_analyzer", state="ok", said="runs")
    return Finding(
        part="perf_analyzer",
        state="missing",
        said=f"{facts.perf_analyzer_problem}: runs go on without the cross-check",
        fix="remove .tools/perf_analyzer and run `make serve`",
    )


def _cores(facts: Facts) -> Finding:
    said = f"{facts.cores} of {facts.all_cores}"
    if facts.cores < 2:
        return Finding(part="cores", state="info", said=f"{said}: server and sender take turns, figures will be low")
    return Finding(part="cores", state="ok", said=said)


def _shm(facts: Facts) -> Finding:
    said = f"{_mib(facts.shm_free_bytes)} free of {_mib(facts.shm_bytes)}"
    if facts.shm_free_bytes < MIN_SHM_BYTES:
        fix = f"at least {_mib(MIN_SHM_BYTES)} are needed: remount it larger (in a container: --shm-size=1g)"
        return Finding(part="/dev/shm", state="short", said=said, fix=fix)
    return Finding(part="/dev/shm", state="ok", said=said)


def _memory(facts: Facts) -> Finding:
    return _enough("memory", facts.memory_bytes, MIN_MEMORY_BYTES, "available", "end other programs")


def _disk(facts: Facts) -> Finding:
    return _enough("disk", facts.disk_free_bytes, MIN_DISK_BYTES, "free", "free some, or point --out elsewhere")


def _enough(part: str, there: int, needed: int, word: str, fix: str) -> Finding:
    said = f"{_mib(there)} {word}"
    if there < needed:
        return Finding(part=part, state="short", said=said, fix=f"at least {_mib(needed)} are needed: {fix}")
    return Finding(part=part, state="ok", said=said)


def _ports(facts: Facts) -> Finding:
    said = ", ".join(f"{port} {f'taken by {by}' if by else 'free'}" for port, by in facts.ports.items())
    return Finding(part="ports", state="info", said=f"{said} (the embedded server takes any free ones)")


def _gpu(facts: Facts) -> Finding:
    if not facts.driver:
        return Finding(part="GPU", state="info", said="no NVIDIA driver: CPU figures only")
    if facts.stub is not None and not (facts.stub.runtime or "").startswith("onnxruntime-gpu"):
        said = f"{facts.gpu or 'a driver answers'}, but the server's environment has {facts.stub.runtime}"
        return Finding(part="GPU", state="missing", said=said, fix="remove .tools/stub and run `make serve`")
    return Finding(part="GPU", state="ok", said=facts.gpu or "a driver answers, nvidia-smi does not")


def _docker(facts: Facts) -> Finding:
    return Finding(
        part="docker", state="info", said="an engine answers" if facts.docker else "no engine: embedded only"
    )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"
