"""What the embedded server needs before it is worth starting: its binaries, and an environment that it can run in.

Reads: .tools/, the stub's Python (run once). Writes: nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from brim import layout, tools
from brim.errors import NoResource, NotReady
from brim.machine import EMBEDDED_PYTHONS

# Runs in the stub's Python. A libpython counts only if it reports the interpreter's own version: beside a self-built
# 3.11.7 without one, the loader finds the distribution's 3.11.2, and the stub would silently run on that.
_PROBE = r"""
import ctypes, importlib.metadata, json, os, sys, sysconfig
name = "libpython%d.%d.so.1.0" % sys.version_info[:2]
folder = None
for place in [*sys.argv[1:], sysconfig.get_config_var("LIBDIR") or "", ""]:
    try:
        version = ctypes.CDLL(os.path.join(place, name)).Py_GetVersion
    except (AttributeError, OSError):
        continue
    version.restype = ctypes.c_char_p
    if version().decode().split()[0] == sys.version.split()[0]:
        folder = place
        break
try:
    import numpy
    numpy_version = numpy.__version__
except ImportError:
    numpy_version = None
runtime = None
for package in ("onnxruntime-gpu", "onnxruntime"):
    try:
        runtime = package + " " + importlib.metadata.version(package)
        break
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps({"python": sys.version.split()[0], "numpy": numpy_version, "libpython_folder": folder,
                  "runtime": runtime}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StubFacts:
    """What the stub's environment says of itself."""

    python: str  # 3.11.7
    numpy: str | None
    libpython_folder: str | None  # "" = the loader finds it by itself; None = nowhere in this very version
    runtime: str | None  # onnxruntime 1.32.0

    @property
    def minor(self) -> str:
        return ".".join(self.python.split(".")[:2])


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFacts:
    """What set-up has left in .tools/."""

    own_python: str  # minor of the Python that runs Brim
    tritonserver: bool
    stub: bool
    stub_built_for: str | None  # minor that the server's stub program was linked for; None = cannot be told


def gather_tools() -> ToolFacts:
    """Look at .tools/ without running anything."""
    return ToolFacts(
        own_python="{}.{}".format(*sys.version_info[:2]),
        tritonserver=os.access(layout.tritonserver(), os.X_OK),
        stub=os.access(layout.stub_python(), os.X_OK),
        stub_built_for=linked_python(layout.triton_backends() / "python" / "triton_python_backend_stub"),
    )


def linked_python(program: Path) -> str | None:
    """The Python minor whose libpython a program is linked against."""
    try:
        found = re.search(rb"libpython(3\.\d+)\.so", program.read_bytes())
    except OSError:
        return None
    return found.group(1).decode() if found else None


def missing_tools(facts: ToolFacts) -> str | None:
    """Why there is nothing to start, or None: what, then what to do."""
    if facts.tritonserver and facts.stub:
        return None
    if facts.own_python not in EMBEDDED_PYTHONS:
        return (
            f"the embedded server needs Python 3.11 or 3.12, and this environment was made with {facts.own_python}; "
            "make PYTHON=/path/to/python3.12 serve, or use --mode docker or --mode remote"
        )
    what = layout.tritonserver() if not facts.tritonserver else layout.stub_python()
    return f"{what} is not there; `make serve` sets it up"


def unfit_stub(facts: StubFacts, tools: ToolFacts) -> str | None:
    """Why a server would not serve, or would serve wrong numbers, from this environment; None if it is fit."""
    if facts.numpy is None:
        return f"{layout.stub_python()} has no numpy; remove .tools/stub and run `make serve` again"
    if not facts.numpy.startswith("1."):
        return (
            f"{layout.stub_python()} has numpy {facts.numpy}, under which this Triton silently serves zeros; "
            "it needs 1.26: remove .tools/stub and run `make serve` again"
        )
    if tools.stub_built_for not in (None, facts.minor):
        return (
            f"the server's stub was set up for Python {tools.stub_built_for} and .tools/stub is Python {facts.minor}; "
            "remove .tools and run `make serve` again"
        )
    if facts.libpython_folder is None:
        package = f"libpython{facts.minor}"
        return (
            f"{package}.so.1.0 of Python {facts.python} is not on the loader path; install {package} "
            f"(Debian, Ubuntu: apt install {package}), or take a Python that has it: make PYTHON=/path/to/python serve"
        )
    return None


def probe_stub(python: Path) -> StubFacts:
    """Run the stub's Python once and let it tell."""
    command = [str(python), "-c", _PROBE, *_libpython_of_setup()]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONHOME", "PYTHONPATH")}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False
        )
        told: dict[str, str | None] = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotReady(f"{python} does not run ({error}); remove .tools/stub and run `make serve` again") from None
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise NotReady(f"{python} does not run ({last[0]}); remove .tools/stub and run `make serve` again") from None
    return StubFacts(
        python=str(told["python"]),
        numpy=told["numpy"],
        libpython_folder=told["libpython_folder"],
        runtime=told["runtime"],
    )


def _libpython_of_setup() -> list[str]:
    python = tools.read_manifest().get("python")
    folder = python.get("libdir") if isinstance(python, dict) else None
    return [folder] if isinstance(folder, str) else []


def check() -> StubFacts:
    """The stub's facts if the embedded server can be started; otherwise NotReady or NoResource with what to do."""
    tools = gather_tools()
    if (line := missing_tools(tools)) is not None:
        raise NotReady(line)
    stub = probe_stub(layout.stub_python())
    if (line := unfit_stub(stub, tools)) is not None:
        raise NoResource(line) if stub.libpython_folder is None else NotReady(line)
    return stub


def environment(stub: StubFacts, folder: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """The server's environment: the stub's Python first whatever stands on PATH, its libpython before the system's."""
    libraries = [str(layout.triton_libraries()), stub.libpython_folder or "", inherited.get("LD_LIBRARY_PATH", "")]
    path = [str(layout.stub_python().parent), inherited.get("PATH", "/usr/bin:/bin")]
    kept = {k: v for k, v in inherited.items() if k not in ("PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV")}
    return {
        **kept,
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "PATH": ":".join(path),
        "PYTHONPATH": str(layout.CHECKOUT),
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # or every variant's folder would grow a __pycache__
        "BRIM_SERVER_FOLDER": str(folder),
    }
