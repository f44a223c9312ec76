"""Inputs in shared memory: regions that this process fills, has a server on this machine map, and takes away again.

Writes /dev/shm/brim-inputs-<run>-<id>, locked as long as its owner lives: an unlocked file of that name is a leftover.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from brim import disk, guard
from brim.errors import BrimError, NoResource, NotReady, UsageError
from brim.kserve import MemoryKind
from brim.offspring import undisturbed
from brim.records import TargetLimit, Transport
from loadtest import owned_files, perf_analyzer_memory
from loadtest.control import Control, unregister
from loadtest.owned_files import SHM
from loadtest.prepared import Region
from loadtest.request_bytes import Part

PREFIX = "brim-inputs-"
ALIGNMENT = 64  # bytes of a cache line; no two tensors share one
NAME_RUN_MAX = 120  # a file name has 255 bytes at most
#: A request that we gave up may still run on the server, which then keeps its region: so long we ask again.
RELEASE_WITHIN_S = 3.0

KINDS: Mapping[Transport, MemoryKind] = {"shared_memory": "system", "cuda_shared_memory": "cuda"}


class Segment(Protocol):
    """Memory that a server can map."""

    def write(self, offset: int, data: bytes) -> None: ...

    def registration(self) -> dict[str, Any]:
        """What the server must be told to map it, but for its name."""

    def free(self) -> None: ...


class SystemSegment:
    """A file in /dev/shm, ours while it is locked, whose bytes are really there (without any it is a mere sign)."""

    def __init__(self, folder: Path, name: str, byte_size: int) -> None:
        """NoResource if the file or its bytes are not to be had."""
        self.path, self.byte_size = folder / name, byte_size
        with _told(folder, byte_size):
            self._handle = owned_files.create(self.path)
        try:
            with _told(folder, byte_size):
                if byte_size:  # reserved now: a page that is not there kills whoever touches it (SIGBUS)
                    os.posix_fallocate(self._handle, 0, byte_size)
        except BaseException:
            self.free()
            raise

    def write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._handle, view, offset)
            offset, view = offset + written, view[written:]

    def registration(self) -> dict[str, Any]:
        return {"key": f"/{self.path.name}", "offset": 0, "byte_size": self.byte_size}

    def free(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self._handle)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    region: Region
    segment: Segment


@dataclass(slots=True, kw_only=True)
class Memory:
    """What one run holds in shared memory, and the server that maps it."""

    kind: MemoryKind
    control: Control
    run_id: str
    make: Callable[[str, int], Segment]  # name and length -> a fresh segment
    _held: list[_Held] = field(default_factory=list)

    def hold(self, tensors: Sequence[bytes]) -> tuple[Region, list[Part]]:
        """Put tensors into a new region that the server knows: the region, and where in it each one lies."""
        name = new_name(self.run_id)
        offsets, byte_size = layout(len(data) for data in tensors)
        with undisturbed():  # or a signal could come between making it and remembering it
            segment = self.make(name, byte_size)
            region = Region(name=name, key=f"/{name}" if self.kind == "system" else "", byte_size=byte_size)
            self._held.append(_Held(region=region, segment=segment))
        for offset, data in zip(offsets, tensors, strict=True):
            segment.write(offset, data)
        self._register(self._held[-1])
        parts = [Part(region=name, offset=at, byte_size=len(data)) for at, data in zip(offsets, tensors, strict=True)]
        return region, parts

    def ensure_registered(self) -> list[str]:
        """Register again what the server has forgotten (a restart, another client's unregister-all): their names."""
        if not self._held:
            return []
        known = set(self.control.shared_memory(self.kind))
        forgotten = [held for held in self._held if held.region.name not in known]
        for held in forgotten:
            self._register(held)
        return [held.region.name for held in forgotten]

    def _register(self, held: _Held) -> None:
        try:
            self.control.register_shared_memory(self.kind, held.region.name, held.segment.registration())
        except NotReady as error:
            raise NotReady(
                f"the server does not take {self.kind} shared memory: {error}; it needs --allow-client-shm=true "
                f"(Triton 26.04 and newer), Brim's user, {SHM} and GPU (docker: --ipc=host); or use --transport wire"
            ) from error

    def release(self) -> None:
        """Have the server forget every region, and free it. A server that is gone has forgotten it already."""
        with contextlib.ExitStack() as last:  # calls every one of them, whatever another raises
            while self._held:
                held = self._held.pop()
                last.callback(held.segment.free)
                last.callback(unregister, self.control, self.kind, held.region.name, within_s=RELEASE_WITHIN_S)


@contextlib.contextmanager
def opened(
    transport: Transport, control: Control, run_id: str, allowed: Mapping[str, TargetLimit], *, folder: Path = SHM
) -> Iterator[Memory | None]:
    """What loadtest.payload needs to send by that transport (None for the wire), gone at the end of the block.

    What runs that were killed have left, here and on the server, goes first. UsageError if the server is not on this
    machine; NoResource without a GPU where one is needed.
    """
    perf_analyzer_memory.sweep(folder)
    sweep(folder)
    sweep_server(control, folder)
    if transport == "wire":
        yield None
        return
    _require_this_machine(control, allowed)
    memory = Memory(kind=KINDS[transport], control=control, run_id=run_id, make=_maker(transport, folder))
    try:
        yield memory
    finally:
        with undisturbed():
            memory.release()


def _maker(transport: Transport, folder: Path) -> Callable[[str, int], Segment]:
    if transport == "shared_memory":
        return lambda name, byte_size: SystemSegment(folder, name, require_room(folder, byte_size))
    from loadtest import cuda_regions

    runtime = cuda_regions.runtime()
    return lambda name, byte_size: cuda_regions.CudaSegment(runtime, SystemSegment(folder, name, 0), byte_size)


def new_name(run_id: str) -> str:
    return f"{PREFIX}{run_id[:NAME_RUN_MAX]}-{secrets.token_hex(4)}"


def layout(sizes: Iterator[int]) -> tuple[list[int], int]:
    """Where each of these tensors begins, and how long all are together (never 0, which cannot be mapped)."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, max(end, ALIGNMENT)


def require_room(folder: Path, byte_size: int) -> int:
    """`byte_size`, if the folder has room for it; NoResource tells both numbers."""
    with _told(folder, byte_size):
        room = os.statvfs(folder)
    free = room.f_bavail * room.f_frsize
    if byte_size > free:
        raise _no_room(folder, byte_size, f"{free / 2**20:.1f} MiB left")
    return byte_size


def _no_room(folder: Path, byte_size: int, left: str) -> NoResource:
    return NoResource(
        f"{folder} has {left}, the inputs in shared memory need {byte_size / 2**20:.1f}; send fewer items per request "
        f"or over the wire, or make it larger (docker: --shm-size)"
    )


@contextlib.contextmanager
def _told(folder: Path, byte_size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in disk.NO_ROOM:
            raise _no_room(folder, byte_size, "no room left") from error
        raise NoResource(f"{folder}: no shared memory to be had ({error.strerror}); use --transport wire") from error


def _require_this_machine(control: Control, allowed: Mapping[str, TargetLimit]) -> None:
    host = control.endpoint.host
    outside = [a.host for a in guard.judge(host, control.endpoint.port, allowed) if not a.loopback]
    if outside:
        raise UsageError(
            f"{host} is {outside[0]}, not this machine, and shared memory needs both on one; use --transport wire"
        )


# ---------------------------------------------------------------------------- leftovers


def sweep(folder: Path = SHM) -> list[str]:
    """Remove the regions in `folder` whose owners have died: their names."""
    return [file.name for file in sorted(folder.glob(f"{PREFIX}*")) if not _owned(file, remove=True)]


def sweep_server(control: Control, folder: Path = SHM) -> list[str]:
    """Have the server forget the regions that owners on this machine left behind when they died: their names."""
    dead = [(kind, name) for kind in KINDS.values() for name in _ours(control, kind) if not _owned(folder / name)]
    if not dead or not _shares(control, folder):
        return []
    for kind, name in dead:
        unregister(control, kind, name)
    return [name for _, name in dead]


def _ours(control: Control, kind: MemoryKind) -> list[str]:
    """What is registered under names that a Brim gave; nothing where there is no shared memory, or none for us."""
    with contextlib.suppress(BrimError):
        return [name for name in control.shared_memory(kind) if name.startswith(PREFIX) and "/" not in name]
    return []


def _shares(control: Control, folder: Path) -> bool:
    """Whether the server maps what is in this folder.

    Only then does a missing file say that an owner has died: a region of ours, CUDA's too, has one until it is
    unregistered. Behind a tunnel or in another container the owners live elsewhere.
    """
    name = new_name("probe")
    segment = SystemSegment(folder, name, ALIGNMENT)
    try:
        control.register_shared_memory("system", name, segment.registration())
    except NotReady:
        return False
    finally:
        unregister(control, "system", name)
        segment.free()
    return True


def _owned(file: Path, *, remove: bool = False) -> bool:
    """Whether somebody holds this file locked, or it is another user's; if neither, it may be removed."""
    with owned_files.seized(file) as handle:
        if handle is not None and remove:
            file.unlink(missing_ok=True)
        return handle is None and os.path.lexists(file)
