"""Takes tritonserver, its python backend and perf_analyzer out of their wheels into `.tools/`.

Reads: install/tools.toml, the package index or a folder of wheels. Writes: .tools/triton/, .tools/perf_analyzer/,
.tools/manifest.json.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from brim import disk, layout, tools
from install.errors import DigestMismatch, SetupError
from install.platform_check import PythonFacts

TOOLS = layout.CHECKOUT / "install" / "tools.toml"

# perf_analyzer asks for these by their plain names; the server's wheel has them under mangled ones.
_LINKS = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One wheel to fetch: exactly this file or none."""

    part: str
    name: str
    version: str
    sha256: str


def wheels(table: Path = TOOLS) -> list[Wheel]:
    return [Wheel(part=part, **fields) for part, fields in tomllib.loads(table.read_text("utf-8")).items()]


def write_manifest(manifest: dict[str, object]) -> None:
    path = layout.tools_manifest()
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"schema": tools.SCHEMA, **manifest}, indent=2, sort_keys=True) + "\n", "utf-8")
    os.replace(new, path)


def stub_program(python: PythonFacts) -> str:
    """Where the wheel keeps the stub for this Python."""
    return f"pytriton/tritonserver/python_backend_stubs/{python.dotted_minor}/triton_python_backend_stub"


def _wanted(python: PythonFacts) -> dict[str, object]:
    return {
        "wheels": {
            wheel.part: {"name": wheel.name, "version": wheel.version, "sha256": wheel.sha256} for wheel in wheels()
        },
        "python": {
            "version": python.dotted,
            "executable": python.executable,
            "libpython": python.libpython,
            "libdir": str(Path(python.libpython).parent) if python.libpython else None,
        },
    }


def present(python: PythonFacts) -> bool:
    """Whether these very wheels were taken apart for this very Python."""
    found = tools.read_manifest()
    there = layout.tritonserver().exists() and layout.perf_analyzer().exists()
    return there and all(found.get(key) == value for key, value in _wanted(python).items())


def place(python: PythonFacts) -> None:
    """Fetch, check, take apart, start once; the manifest is written last, so what is interrupted is done again."""
    wanted = _wanted(python)
    layout.tools().mkdir(exist_ok=True)
    layout.tools_manifest().unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=layout.tools(), prefix=".new-") as scratch:
        new = Path(scratch)
        by_part = {wheel.part: fetch(wheel, new) for wheel in wheels()}
        extract(by_part["triton"], by_part["perf_analyzer"], python, new)
        for name in ("triton", "perf_analyzer"):
            _put(new / name, layout.tools() / name)
    verify()
    write_manifest({**wanted, "binaries": {name: disk.sha256(path) for name, path in tools.programs().items()}})


def fetch(wheel: Wheel, into: Path) -> Path:
    """The wheel's file, through pip (its cache, mirrors and proxies), checked by pip and again here."""
    folder = into / f"wheel-{wheel.part}"
    folder.mkdir()
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n", "utf-8")
    command = [str(layout.venv_python()), "-m", "pip", "-qq", "--disable-pip-version-check", "download"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "-d", str(folder), "-r", str(requirement)]
    done = subprocess.run(command, stdout=sys.stderr, stdin=subprocess.DEVNULL)
    files = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(files) != 1:
        raise SetupError(f"{wheel.name} {wheel.version} was not fetched (pip's reason stands above): run make again")
    check(files[0], wheel.sha256)
    return files[0]


def check(path: Path, expected: str) -> None:
    """Refuse a file that is not the one named."""
    found = disk.sha256(path)
    if found != expected:
        raise DigestMismatch(
            f"{path.name}: sha256 is {found}, must be {expected}: not used; remove it and fetch it again"
        )


def extract(triton_wheel: Path, perf_wheel: Path, python: PythonFacts, into: Path) -> None:
    """Lay out triton/ and perf_analyzer/ under `into` as brim/layout.py names them."""
    server, tree = "pytriton/tritonserver", into / "triton"
    with zipfile.ZipFile(triton_wheel) as archive:
        libraries = [name for name in archive.namelist() if name.startswith("nvidia_pytriton.libs/")]
        files = {name: tree / "lib" / PurePosixPath(name).name for name in libraries if name[-1] != "/"}
        files[f"{server}/bin/tritonserver"] = tree / "bin" / "tritonserver"
        backend = tree / "backends" / "python"
        for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
            files[f"{server}/backends/python/{name}"] = backend / name
        files[stub_program(python)] = backend / "triton_python_backend_stub"
        _unpack(archive, files)
    with zipfile.ZipFile(perf_wheel) as archive:
        inside = next((name for name in archive.namelist() if name.endswith("/data/bin/perf_analyzer")), None)
        if inside is None:
            raise SetupError(f"{perf_wheel.name} holds no perf_analyzer: another version is needed in tools.toml")
        _unpack(archive, {inside: into / "perf_analyzer" / "perf_analyzer"})
    _link(tree / "lib", into / "perf_analyzer" / "lib")


def _unpack(archive: zipfile.ZipFile, files: dict[str, Path]) -> None:
    for inside, target in files.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(inside) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        target.chmod(0o644 if target.suffix == ".py" else 0o755)


def _link(libraries: Path, into: Path) -> None:
    into.mkdir(parents=True)
    for name, pattern in _LINKS.items():
        found = sorted(libraries.glob(pattern))
        if len(found) != 1:
            raise SetupError(f"the server's wheel holds {len(found)} files like {pattern}, one was expected")
        (into / name).symlink_to(Path("..", "..", "triton", "lib", found[0].name))


def _put(new: Path, place: Path) -> None:
    if place.exists():
        shutil.rmtree(place)
    new.rename(place)


def verify() -> None:
    """Really start both programs; a library that is missing shows here and not in the middle of a run."""
    for name, reason in (("tritonserver", tools.server_refuses()), ("perf_analyzer", tools.perf_analyzer_refuses())):
        if reason is not None:
            raise SetupError(f"{name} does not run here: {reason}")
