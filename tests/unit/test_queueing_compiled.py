"""Machine code of the simulator: kept where that is possible, made anew where it is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from brim.records import Status
from queueing import kernel
from queueing.batcher import Batcher, Service, open_loop

CHECKOUT = Path(__file__).resolve().parents[2]
HELD = """
import numpy as np
from queueing import kernel
seconds = kernel.held(np.full((1, 1), 2.0), np.ones(1), 1, 1, 1.5)
print(seconds, kernel.held.stats.cache_path, kernel.run.stats.cache_path)
"""


def test_where_nothing_may_be_written_it_compiles_in_each_process(tmp_path: Path) -> None:
    """Files where the folders would be: no permission helps against them, not even root's."""
    for room in ("brim", "queueing"):
        shutil.copytree(CHECKOUT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "queueing" / "__pycache__").touch()
    (tmp_path / "home").touch()
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", HELD],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**bare, "HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.stdout.strip() == "4.0 None None", done.stderr


def test_where_it_may_be_written_machine_code_is_kept_from_process_to_process() -> None:
    batcher = Batcher(8)
    open_loop(np.array([0.0]), batcher, Service.of(batcher, lambda _: 1.0))
    assert list(Path(kernel.run.stats.cache_path).glob("kernel.run-*.nbi"))  # type: ignore[attr-defined]


def test_compiled_code_writes_the_outcomes_of_the_records() -> None:
    assert (kernel.OK, kernel.REJECTED) == (Status.OK, Status.REJECTED)
