"""The house's import rules: data flows one way because rooms cannot see each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
ROOMS = ("analysis", "brim", "export", "engines", "serve", "loadtest", "judging", "queueing", "experiments", "install")

#: room -> what it may import besides the standard library and itself.
ALLOWED = {
    "brim": set(),
    "export": {"brim", "engines", "torch", "timm", "torchvision", "onnx", "safetensors", "numpy", "click"},
    "engines": {"brim", "numpy", "onnxruntime", "torch"},
    "serve": {"brim", "tritonclient", "google", "psutil", "click"},
    "loadtest": {"brim", "judging", "numpy", "polars", "tritonclient", "grpc", "google", "psutil", "prometheus_client"},
    "judging": {"brim", "queueing", "numpy", "scipy"},
    "queueing": {"brim", "numpy", "scipy"},
    "analysis": {
        "brim", "judging", "queueing", "numpy", "scipy", "polars", "jinja2", "markupsafe", "matplotlib", "click",
    },
    "install": {"brim", "click"},
    "experiments": {
        "brim", "export", "engines", "serve", "loadtest", "judging", "queueing", "analysis", "numpy", "psutil",
        "click", "torch", "timm",
    },
}  # fmt: skip
#: Files whose job is to wrap what the rest of their room must not see.
EXCEPTIONS = {
    "brim/live.py": {"brim", "rich"},
    "queueing/kernel.py": {"numba", "numpy"},
    "brim/cli.py": {"analysis", "click", "export", "serve", "experiments", "install"},
    "serve/models": {"engines", "numpy", "triton_python_backend_utils"},
    "loadtest/senders": {
        "brim", "loadtest", "locust", "gevent", "geventhttpclient", "grpc", "tritonclient", "numpy", "click", "zmq",
        "mlperf_loadgen",
    },
}  # fmt: skip


def allowed_for(path: Path) -> set[str]:
    relative = path.relative_to(CHECKOUT).as_posix()
    for place, names in EXCEPTIONS.items():
        if relative == place or relative.startswith(place + "/"):
            return names
    room = relative.split("/")[0]
    return ALLOWED[room] | {room}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:  # only the files that are copied side by side into a variant's folder
                assert "serve/models" in path.as_posix(), f"{path}: relative import"
                continue
            names.add((node.module or "").partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"__future__"}


SOURCES = sorted(p for room in ROOMS for p in (CHECKOUT / room).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(CHECKOUT).as_posix())
def test_a_room_imports_only_what_its_job_needs(path: Path) -> None:
    room = path.relative_to(CHECKOUT).parts[0]
    assert imported(path) - {room} <= allowed_for(path)


def test_no_module_of_loadtest_bears_the_name_of_the_standard_library_or_of_a_dependency() -> None:
    """Locust puts the locustfile's folder first on the path, so such a name would hide the real one."""
    dependencies = {"locust", "gevent", "grpc", "numpy", "polars", "scipy", "tritonclient", "psutil", "click"}
    names = {p.stem for p in (CHECKOUT / "loadtest").rglob("*.py")} - {"__init__", "__main__"}
    assert not names & (set(sys.stdlib_module_names) | dependencies)


def test_the_front_door_opens_without_any_heavy_import() -> None:
    code = (
        "import sys, brim.cli\n"
        "try: brim.cli.front_door.main(['--help'], standalone_mode=False)\n"
        "finally: print([m for m in ('numpy', 'numba', 'torch', 'locust', 'tritonclient') if m in sys.modules],"
        " file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert done.stderr.strip() == "[]"


def test_only_who_simulates_waits_for_the_compiler() -> None:
    code = "import sys, queueing.arrivals, queueing.batcher, queueing.closed_forms; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert done.stdout.strip() == "False"
