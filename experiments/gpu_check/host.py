"""What this host is: device, driver, processor, versions. Runs in a child: the parent never holds the device."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from brim import __version__
from brim.records import Environment
from experiments.gpu_check import telemetry

Device = Literal["cuda", "cpu"]
NO_ENVIRONMENT = Environment(machine={}, software={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The host as one child saw it; `problem` says in one clause why it gives no figures, if so."""

    device: Device
    problem: str = ""
    environment: Environment = NO_ENVIRONMENT
    gpu_uuid: str = ""

    @property
    def name(self) -> str:
        return self.environment.machine["gpu"]

    @property
    def machine_id(self) -> str:
        """Folder name: the device in words, and a digest of what must be equal for figures to belong together."""
        versions = {key: self.environment.software[key] for key in ("torch", "cuda", "timm")}
        parts = {**self.environment.machine, **versions}
        digest = hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()[:8]
        return f"{re.sub(r'[^a-z0-9]+', '-', self.name.lower()).strip('-')}-{digest}"


def probe(device: Device) -> Host:
    """Look at the host with torch; never raises for a host without a device."""
    if device == "cuda" and (problem := _driver_problem()):
        return Host(device=device, problem=problem)
    try:
        import torch
    except Exception as error:  # noqa: BLE001  # a broken torch raises anything: OSError, ImportError, RuntimeError
        return Host(device=device, problem=f"torch cannot be imported ({type(error).__name__}: {error})")
    if device == "cpu":
        facts = {"gpu": f"cpu {_processor()}"}
        return Host(device=device, environment=_environment(torch, facts, "none"))
    if torch.version.cuda is None:
        return Host(device=device, problem=f"torch {torch.__version__} was built without CUDA")
    if not torch.cuda.is_available():
        return Host(device=device, problem=f"torch {torch.__version__} finds no CUDA device; does `nvidia-smi` answer?")
    properties = torch.cuda.get_device_properties(0)
    uuid = str(getattr(properties, "uuid", ""))
    uuid = uuid if not uuid or uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
    facts = {
        "gpu": str(properties.name),
        "gpu_memory_gib": f"{properties.total_memory / 2**30:.1f}",
        "gpu_multiprocessors": str(properties.multi_processor_count),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": telemetry.driver(uuid),
    }
    return Host(device=device, environment=_environment(torch, facts, torch.version.cuda), gpu_uuid=uuid)


def _driver_problem() -> str:
    """Why the NVIDIA driver gives no device, or nothing: an answer at once, where torch takes seconds to load."""
    try:
        code = ctypes.CDLL("libcuda.so.1").cuInit(0)
    except OSError:
        # Where there are device files, the driver may lie where only torch finds it: let torch say.
        return "" if any(Path("/dev").glob("nvidia*")) else "this host has no NVIDIA driver"
    return f"the NVIDIA driver offers no device (cuInit gives {code})" if code else ""


def _environment(torch: Any, facts: Mapping[str, str], cuda: str) -> Environment:
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    machine = {
        **facts,
        "cpu": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory_gib": f"{pages * page / 2**30:.0f}",
    }
    software = {
        "brim": __version__,
        "gpu_check": code_digest(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": cuda,
        "cudnn": str(torch.backends.cudnn.version() or "none"),
        "timm": _version("timm"),
        "triton": _version("triton"),
        "kernel": platform.release(),
        "allocator": os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or "default",
    }
    return Environment(machine=machine, software=software)


def code_digest() -> str:
    """Digest of the modules that measure: equal = the figures were made by the same code."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
