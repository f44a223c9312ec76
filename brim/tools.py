"""What set-up placed in `.tools/`: its own note of it, and whether a program there runs.

Reads: .tools/manifest.json. Writes: nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from brim import layout

SCHEMA = 1


def read_manifest() -> dict[str, object]:
    """What set-up wrote down; {} if it has not run, or wrote it in another form."""
    try:
        found = json.loads(layout.tools_manifest().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get("schema") == SCHEMA else {}


def programs() -> dict[str, Path]:
    """Name -> place of every binary whose digest the manifest holds."""
    backend = layout.triton_backends() / "python"
    return {
        "tritonserver": layout.tritonserver(),
        "libtriton_python.so": backend / "libtriton_python.so",
        "triton_python_backend_stub": backend / "triton_python_backend_stub",
        "perf_analyzer": layout.perf_analyzer(),
    }


def server_refuses() -> str | None:
    """Why tritonserver does not run on this machine, None if it does."""
    return _refuses(layout.tritonserver(), "--help", layout.triton_libraries(), says="--model-repository")


def perf_analyzer_refuses() -> str | None:
    """Why perf_analyzer does not run on this machine, None if it does."""
    return _refuses(layout.perf_analyzer(), "--version", layout.perf_analyzer_libraries(), says="Perf Analyzer Version")


def _refuses(program: Path, word: str, libraries: Path, *, says: str) -> str | None:
    if not program.exists():
        return "not there"
    env = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    try:
        done = subprocess.run(
            [str(program), word], env=env, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = done.stdout + done.stderr
    if says in said:  # neither program promises its exit code for these words
        return None
    lines = said.strip().splitlines() or [f"exit code {done.returncode}, no output"]
    return next(
        (line for line in lines if "error while loading" in line or "not found (required by" in line), lines[-1]
    )
