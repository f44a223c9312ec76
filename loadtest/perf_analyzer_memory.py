"""What perf_analyzer does to a server's shared memory, and how that is kept from doing harm.

2.51 names its regions and their segments after the model's tensors, unregisters every region on the server, whoever's,
before and after its load, and leaves its own behind if it is killed. What it may leave stands in a file of ours,
/dev/shm/brim-claim-<id>, which is locked as long as Brim or perf_analyzer lives: the next start sweeps what an unlocked
one names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from brim import codec, disk
from brim.errors import BrimError, UsageError
from brim.offspring import undisturbed
from brim.records import Access
from loadtest import owned_files, prepared
from loadtest.control import control, unregister
from loadtest.driver import LoadSpec
from loadtest.owned_files import SHM
from loadtest.prepared import Payload

PREFIX = "brim-claim-"
CLAIM_BYTES = 2**20  # a longer file is none of ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one perf_analyzer may leave behind, here and on its server."""

    url: str
    access: Access
    inputs: tuple[str, ...]  # names of tensors, after which it names regions and segments
    outputs: tuple[str, ...]
    others: tuple[str, ...]  # segments of such names that were there before it came

    def segments(self, folder: Path) -> list[Path]:
        """Its own in the folder."""
        return [f for f in folder.iterdir() if self.names().fullmatch(f.name) and f.name not in self.others]

    def names(self) -> re.Pattern[str]:
        """<input>_<stream>_<step> and <output>; it leaves slashes out."""
        inputs = [rf"{_escaped(name)}_\d+_\d+" for name in self.inputs]
        return re.compile("|".join([*inputs, *map(_escaped, self.outputs)]))


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


class Claimed:
    """A claim in its file, from before perf_analyzer starts until all that it names is gone."""

    def __init__(self, url: str, access: Access, payload: Payload, folder: Path = SHM) -> None:
        """NoResource if the file cannot be written."""
        inputs, outputs = tuple(t.name for t in payload.inputs), tuple(t.name for t in payload.outputs)
        claim = Claim(url=url, access=access, inputs=inputs, outputs=outputs, others=())
        self._claim = dataclasses.replace(claim, others=tuple(f.name for f in claim.segments(folder)))
        self._folder = folder
        self._file = folder / f"{PREFIX}{secrets.token_hex(4)}"
        with disk.told(self._file):
            self.handle = owned_files.create(self._file)  # for perf_analyzer to inherit, which may die after us
        try:
            with disk.told(self._file):
                os.write(self.handle, codec.to_json(self._claim).encode())
        except BaseException:
            self._file.unlink()
            os.close(self.handle)
            raise

    def release(self) -> None:
        """Take away what perf_analyzer left; what cannot be had now goes at the next sweep."""
        with contextlib.suppress(OSError):
            _take_away(self._claim, self._folder)
            self._file.unlink()
        os.close(self.handle)


@contextlib.contextmanager
def claimed(url: str, access: Access, payload: Payload) -> Iterator[int]:
    """A claim for the length of the block: the handle that perf_analyzer is to inherit."""
    claim = Claimed(url, access, payload)
    try:
        yield claim.handle
    finally:
        with undisturbed():
            claim.release()


def sweep(folder: Path = SHM) -> list[str]:
    """Take away what perf_analyzers left whose Brims were killed: the names of their segments."""
    swept = []
    for file in sorted(folder.glob(f"{PREFIX}*")):
        with owned_files.seized(file) as handle:
            if handle is not None:
                with contextlib.suppress(OSError):
                    swept += _take_away(_read(handle), folder)
                    file.unlink(missing_ok=True)
    return swept


def _escaped(name: str) -> str:
    return re.escape(name.replace("/", "").replace("\\", ""))


def _read(handle: int) -> Claim | None:
    """None for one that a kill cut short, before anything that it was to name was made."""
    try:
        return codec.from_json(Claim, os.read(handle, CLAIM_BYTES).decode("utf-8", "replace"), where=PREFIX)
    except BrimError:
        return None


def _take_away(claim: Claim | None, folder: Path) -> list[str]:
    """Have the server forget what it names (one that is gone has), and unlink it: the names of the segments."""
    if claim is None:
        return []
    with contextlib.suppress(BrimError):
        ask = control(claim.url, {}, claim.access)  # on this machine, as shared memory is
        for name in filter(claim.names().fullmatch, ask.shared_memory("system")):
            unregister(ask, "system", name)
    left = claim.segments(folder)
    for segment in left:
        segment.unlink(missing_ok=True)
    return [segment.name for segment in left]
