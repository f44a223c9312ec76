"""Where a measurement was made and with what: the machine (must be equal to compare) and the software (is printed)."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from brim import __version__, layout
from brim.records import Environment

PACKAGES = ("locust", "gevent", "numpy", "scipy", "polars", "tritonclient", "onnx", "onnxruntime", "torch", "timm")


def describe(extra: Mapping[str, str]) -> Environment:
    """This machine and this software; `extra` is what the caller knows of server, engine and model."""
    return Environment(machine=machine(), software={**software(), **extra})


@functools.cache
def machine() -> Mapping[str, str]:
    """CPU model, cores that may be used, memory and GPU with driver: strings, stable between two runs."""
    return {
        "cpu": _cpu_model(Path("/proc/cpuinfo")),
        "cores": str(usable_cores()),
        "memory_gib": str(round(_memory_bytes() / 2**30)),
        "gpu": gpus() or "none",
    }


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def gpus() -> str:
    """Names and driver of the GPUs that answer, e.g. `NVIDIA H200 (driver 570.1)`; empty if none does."""
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    rows = [line.rsplit(", ", 1) for line in asked.stdout.splitlines() if ", " in line]
    return "; ".join(f"{name} (driver {driver})" for name, driver in rows)


def software() -> Mapping[str, str]:
    """Brim's own version and commit, Python, kernel and the packages that matter."""
    versions = {"brim": __version__, "commit": _commit(), "python": platform.python_version()}
    versions["kernel"] = platform.release()
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def digest_of(files: Iterable[Path]) -> str:
    """One sha256 over names and contents, for sources that decide what is measured."""
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def _cpu_model(cpuinfo: Path) -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _commit() -> str:
    """The checkout's commit, with `+` if files differ from it; `unknown` outside git."""
    git = ["git", "-C", str(layout.CHECKOUT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=5)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else "unknown"
