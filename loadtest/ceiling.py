"""What the same engine does alone in this machine, in a child process of the stub's environment: rate and outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brim import disk, layout
from brim.errors import NotReady


def run_engine(spec: Mapping[str, Any], folder: Path, *, python: Path, limit_s: float) -> dict[str, Any]:
    """Run `python -m engines.run` on `spec` (its docstring is the contract): its JSON, or NotReady with its words."""
    spec_file = disk.save_text(folder / "spec.json", json.dumps({**spec, "result": str(folder / "result.json")}))
    environment = {**os.environ, "PYTHONPATH": str(layout.CHECKOUT)}
    supervise = Path(__file__).with_name("supervise.py")  # it must not outlive us
    command = [sys.executable, "-I", "-S", str(supervise), str(os.getpid()), "", str(python), "-m", "engines.run"]
    command.append(str(spec_file))
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit_s, check=False)
    except OSError as error:
        raise NotReady(f"{python} does not start ({error.strerror}); `make serve` sets it up") from error
    except subprocess.TimeoutExpired as error:
        raise NotReady(f"the engine alone was not done after {limit_s:.0f} s; see {folder}") from error
    try:
        answer: dict[str, Any] = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError) as error:
        words = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        raise NotReady(f"the engine alone gave no answer: {words[0]}") from error
    if "error" in answer:
        raise NotReady(f"the engine alone failed: {answer['error']}")
    return answer
