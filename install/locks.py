"""The lock files: where they lie, what they pin, and how `make lock` makes them again.

Reads: pyproject.toml, install/locks/. Writes: install/locks/py3xx/*.txt.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

from brim.layout import CHECKOUT
from install.errors import SetupError
from install.layers import EXTRAS

LOCKS = CHECKOUT / "install" / "locks"
RESOLVER = "resolver.txt"  # the pinned uv that makes the locks
MINORS = ("3.11", "3.12", "3.13")
STUB_MINORS = ("3.11", "3.12")
STUB_NUMPY = "1.26.4"  # the last numpy 1: tritonserver 2.51's stub silently serves zeros under numpy 2
RUNTIME = {"cpu": "onnxruntime", "gpu": "onnxruntime-gpu"}

# Layers that any host may need resolve for Linux and macOS; the others only for the platform of the binaries.
_CPYTHON = "platform_python_implementation == 'CPython' and implementation_name == 'cpython'"
ANYWHERE = (f"sys_platform == 'linux' and {_CPYTHON}", f"sys_platform == 'darwin' and {_CPYTHON}")
X86_LINUX = (f"sys_platform == 'linux' and platform_machine == 'x86_64' and {_CPYTHON}",)
# No wheels for macOS since 25.9, and Locust needs a newer one: macOS compiles it (Xcode's command line tools).
COMPILED_ON_MACOS = "gevent"

_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)")
_MARKER = re.compile(r"(?m)(?<=\S)( ; .*?)(?= \\$)")


def lock_file(minor: str, layer: str) -> Path:
    """`minor` as in 3.11; `layer` is a key of EXTRAS, `build`, `stub-cpu` or `stub-gpu`."""
    return LOCKS / f"py{minor.replace('.', '')}" / f"{layer}.txt"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """Canonical name → version of every requirement in a lock, whatever its marker."""
    found = (_PIN.match(line) for line in text.splitlines())
    return {canonical(pin[1]): pin[2] for pin in found if pin}


def without_common_marker(text: str) -> str:
    """Drop the marker that every requirement bears: it only repeats what the lock is for. Others stay."""
    markers = {match[1] for match in _MARKER.finditer(text)}
    return _MARKER.sub("", text) if len(markers) == 1 else text


# ---- making them again


def make_locks() -> list[Path]:
    """Resolve one universe, then every layer as a subset of it, for every Python minor and device."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
    with tempfile.TemporaryDirectory(prefix="brim-lock-") as scratch:
        return _Resolver(Path(scratch), project).run()


class _Resolver:
    """One run of `make lock`: a scratch folder with a pinned uv in it."""

    def __init__(self, scratch: Path, project: dict[str, object]) -> None:
        self.scratch = scratch
        self.project = project
        self.uv = _fetch_uv(scratch)

    def run(self) -> list[Path]:
        made: list[Path] = []
        # The oldest Python's universe binds the newer ones: the same versions everywhere, so that figures compare.
        oldest = self._universe(MINORS[0], "cpu", {})
        for minor in MINORS:
            cpu = self._universe(minor, "cpu", oldest)
            gpu = self._universe(minor, "gpu", {n: v for n, v in cpu.items() if n != RUNTIME["cpu"]})
            for layer, extras in EXTRAS.items():
                universe = gpu if layer.endswith("-gpu") else cpu
                only = X86_LINUX if layer.startswith("export") else ANYWHERE
                made.append(self._lock(minor, layer, self._needs(extras), universe, only))
            made.append(self._lock(minor, "build", ["setuptools"], cpu, ANYWHERE))
            if minor in STUB_MINORS:
                made += [self._stub(minor, "cpu", cpu), self._stub(minor, "gpu", gpu)]
        return made

    def _universe(self, minor: str, device: str, bounds: dict[str, str]) -> dict[str, str]:
        extras = ("load", "serve", "loadgen", "export", f"engine-{device}", "dev")
        return pins(self._resolve(minor, [*self._needs(extras), "setuptools"], bounds, X86_LINUX))

    def _stub(self, minor: str, device: str, universe: dict[str, str]) -> Path:
        runtime = RUNTIME[device]
        needs = [f"numpy=={STUB_NUMPY}", f"{runtime}=={universe[runtime]}"]
        bounds = {name: version for name, version in universe.items() if name != "numpy"}
        return self._lock(minor, f"stub-{device}", needs, bounds, X86_LINUX)

    def _needs(self, extras: Iterable[str]) -> list[str]:
        """The core dependencies and the extras' own, with `brim[extra]` opened up."""
        core, table = self.project["dependencies"], self.project["optional-dependencies"]
        assert isinstance(core, list) and isinstance(table, dict)
        needs: list[str] = list(core)
        for extra in extras:
            for need in table[extra]:
                inner = re.fullmatch(r"brim\[(.+)\]", need)
                needs += table[inner[1]] if inner else [need]
        return needs

    def _lock(self, minor: str, layer: str, needs: list[str], bounds: dict[str, str], only: tuple[str, ...]) -> Path:
        body = without_common_marker(self._resolve(minor, needs, bounds, only))
        out = lock_file(minor, layer)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(f"# Layer {layer} for Python {minor}. Made by `make lock`; do not edit.\n{body}", "utf-8")
        return out

    def _resolve(self, minor: str, needs: list[str], bounds: dict[str, str], only: tuple[str, ...]) -> str:
        work = Path(tempfile.mkdtemp(dir=self.scratch))
        (work / "needs.in").write_text("\n".join(needs) + "\n", "utf-8")
        (work / "bounds.txt").write_text("".join(f"{n}=={v}\n" for n, v in bounds.items()), "utf-8")
        markers = ", ".join(f"\"python_version == '{minor}' and {marker}\"" for marker in only)
        (work / "pyproject.toml").write_text(f"[tool.uv]\nenvironments = [{markers}]\n", "utf-8")
        command = [str(self.uv), "pip", "compile", "needs.in", "-c", "bounds.txt", "--quiet"]
        command += ["--universal", "--python-version", minor]
        wheels = [":all:"] if only == X86_LINUX else [name for name in bounds if name != COMPILED_ON_MACOS]
        command += [word for name in wheels for word in ("--only-binary", name)]
        command += ["--generate-hashes", "--no-emit-index-url", "--no-annotate", "--no-header"]
        # No index but uv's default one: a lock must hold on a machine without this one's settings.
        env = {k: v for k, v in os.environ.items() if not k.startswith(("UV_", "PIP_"))}
        done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
        if done.returncode != 0:
            wanted = ", ".join(needs)
            raise SetupError(f"make lock: Python {minor}: {wanted} do not resolve: {done.stderr.strip()}")
        return done.stdout


def _fetch_uv(scratch: Path) -> Path:
    folder = scratch / "uv"
    lock = LOCKS / RESOLVER
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "--only-binary=:all:"]
    subprocess.run([*pip, "--require-hashes", "-r", str(lock)], check=True)
    return folder / "bin" / "uv"
