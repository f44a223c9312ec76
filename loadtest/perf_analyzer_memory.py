"""What perf_analyzer does to a server's shared memory, and how that is kept from doing harm.

2.51 names its regions and their segments after the model's tensors, unregisters every region on the server, whoever's,
before and after its load, and leaves its own behind if it is killed.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from brim.errors import BrimError, UsageError
from loadtest import prepared
from loadtest.control import control
from loadtest.driver import LoadSpec
from loadtest.prepared import Payload

SHM = Path("/dev/shm")


def require_alone(spec: LoadSpec) -> None:
    """UsageError if regions are registered that are not of our payload. Ours are lost, too: register them again."""
    ours = {region.name for region in prepared.load(Path(spec.payload)).regions}
    known = control(spec.url, spec.allowed, spec.access).shared_memory("system")
    others = [name for name in known if name not in ours]
    if others:
        raise UsageError(
            f"perf_analyzer would unregister shared memory that others use on this server ({others[0]}); leave the "
            f"cross-check out"
        )


def segments(payload: Payload, folder: Path = SHM) -> set[Path]:
    """Files there that bear the names of its segments."""
    names = _names(payload)
    return {file for file in folder.iterdir() if names.fullmatch(file.name)}


def sweep(payload: Payload, before: set[Path], folder: Path = SHM) -> None:
    """Unlink what it left behind; what was there before it came is not its own."""
    for file in segments(payload, folder) - before:
        file.unlink(missing_ok=True)


def forget(spec: LoadSpec, payload: Payload) -> None:
    """Have the server forget its regions; one that does not answer has other worries."""
    ask, names = control(spec.url, spec.allowed, spec.access), _names(payload)
    with contextlib.suppress(BrimError):
        for name in filter(names.fullmatch, ask.shared_memory("system")):
            ask.unregister_shared_memory("system", name)


def _names(payload: Payload) -> re.Pattern[str]:
    """<input>_<stream>_<step> and <output>."""
    inputs = [rf"{re.escape(t.name)}_\d+_\d+" for t in payload.inputs]
    return re.compile("|".join([*inputs, *(re.escape(t.name) for t in payload.outputs)]))
