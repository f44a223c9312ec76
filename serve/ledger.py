"""Keeps which servers Brim started, tells live from dead and ours from strangers, and stops only ours.

Reads, writes: out/servers/<id>/server.json and out/servers/current; model_repository/.views/<id>.json, which says what
is being viewed to whoever writes variants, whatever `--out` the server was started with. Removes: /dev/shm/<id>-*.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from brim import disk, layout
from brim.errors import BrimError, NotReady
from brim.kserve import KServe
from brim.records import Server, TargetLimit
from serve import docker_engine, readiness

SHM = Path("/dev/shm")
#: Ids that we make; nothing else is ever used as a prefix of files to remove.
_ID = re.compile(r"brim-\d{8}t\d{6}z-[0-9a-f]{6}")
#: psutil derives a start time from the boot time, which a clock adjustment moves a little.
_SAME_START_S = 2.0
#: Triton is told to give requests in flight 5 s, then takes about 2 s to unload.
_TERM_S = 15.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """model_repository/.views/<server>.json: one server and the variants that it views."""

    server: str
    out: str
    pid: int | None
    process_started_s: float | None
    container: str | None
    variants: tuple[str, ...]


def new_id() -> str:
    """A name for a server: its folder, its `--id`, and the prefix of its shared memory."""
    return f"brim-{datetime.now(UTC):%Y%m%dt%H%M%Sz}-{secrets.token_hex(3)}"


# ---------------------------------------------------------------------------- processes


def process_started_s(pid: int) -> float | None:
    """When the process of that pid started; None if there is none, or only its remains."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def same_process(recorded_s: float | None, found_s: float | None) -> bool:
    """Whether a pid still names the process that was recorded: pids are used again, start times are not."""
    return recorded_s is not None and found_s is not None and abs(recorded_s - found_s) <= _SAME_START_S


def alive(server: Server | View) -> bool:
    """Whether what Brim started still runs; a remote server is never ours and counts as alive."""
    if server.container is not None:
        return docker_engine.running(server.container)
    if server.pid is not None:
        return same_process(server.process_started_s, process_started_s(server.pid))
    return True


def answered_by(server: Server, allowed: Mapping[str, TargetLimit] | None = None) -> str | None:
    """The name that the server at this URL gives itself; None if nobody answers."""
    try:
        return str(KServe(server.http, allowed).metadata().get("name", ""))
    except NotReady:
        return None


def is_ours(server: Server) -> bool:
    """Whether who answers at the URL is this very server; a remote one has nothing to be held against."""
    return server.mode != "remote" and answered_by(server) == server.id


# ---------------------------------------------------------------------------- what is known


def current(out: Path) -> Server | None:
    """The server that this `out` last started or was pointed at, alive or not; None if there is none."""
    link = layout.current_server(out)
    if not (link / "server.json").is_file():
        return None
    return disk.load(Server, link / "server.json")


def usable(out: Path) -> Server:
    """The current server, alive and answering by its own name. NotReady says what stands there instead."""
    server = current(out)
    if server is None:
        raise NotReady(f"no server is known in {out}; `make serve` starts one")
    if not alive(server):
        log = readiness.tail(Path(server.log)) if server.log else []
        raise NotReady(f"{server.id} has ended ({readiness.last_words(log)}); `make serve` starts another")
    if server.mode != "remote":
        refuse_stranger(server, answered_by(server))
    return server


def refuse_stranger(server: Server, name: str | None) -> None:
    """NotReady unless the server that answers is the one that we started."""
    if name is None:
        raise NotReady(f"{server.id} runs but {server.http} does not answer; `brim down`, then `make serve`")
    if name != server.id:
        raise NotReady(
            f"{server.http} is answered by {name!r}, a stranger, not by {server.id}; `brim down`, then `make serve`"
        )


def views(repository: Path) -> Iterator[View]:
    """Every server that views this repository, as noted when it started."""
    for note in sorted(_views_folder(repository).glob("*.json")):
        with contextlib.suppress(BrimError):  # gone or broken meanwhile: then it holds nothing
            yield disk.load(View, note)


def viewed(repository: Path, besides: str | None = None) -> frozenset[str]:
    """Variants that a live server views and that must not be rewritten; `besides` is a server not to count."""
    return frozenset(
        variant for view in views(repository) if view.server != besides and alive(view) for variant in view.variants
    )


def note(server: Server, out: Path) -> None:
    """Write down a server as soon as it has a pid or a container, before it is known to be of use."""
    disk.save(layout.server_folder(out, server.id) / "server.json", server)
    if server.repository is not None:
        view = View(
            server=server.id,
            out=str(out.absolute()),
            pid=server.pid,
            process_started_s=server.process_started_s,
            container=server.container,
            variants=server.variants,
        )
        disk.save(note_file(Path(server.repository), server.id), view)


def make_current(server: Server, out: Path) -> None:
    """Record a server that is up, and let `current` name it."""
    disk.save(layout.server_folder(out, server.id) / "server.json", server)
    link = layout.current_server(out)
    fresh = link.with_name(f".current.{server.id}")
    with disk.told(link):
        fresh.symlink_to(server.id)
        os.replace(fresh, link)


def _views_folder(repository: Path) -> Path:
    return repository / ".views"


def note_file(repository: Path, server_id: str) -> Path:
    """Where it is noted that this server views variants."""
    return _views_folder(repository) / f"{server_id}.json"


# ---------------------------------------------------------------------------- ending


def stop(server: Server, out: Path) -> None:
    """End the server if Brim started it and it is still that process; then clean up after it. Forgets a remote one."""
    if server.container is not None:
        docker_engine.remove(server.container)
    elif server.pid is not None and alive(server):
        end_process(server.pid, server.process_started_s)
    forget(server, out)


def forget(server: Server, out: Path) -> None:
    """Clean up after a server that has ended: stubs, shared memory, notes. Its folder stays, with the log."""
    if server.mode == "embedded":
        end_leftovers(server.id)
    if server.repository is not None:
        note_file(Path(server.repository), server.id).unlink(missing_ok=True)
    link = layout.current_server(out)
    if link.is_symlink() and os.readlink(link) == server.id:
        link.unlink(missing_ok=True)


def started_from(out: Path, repository: Path) -> list[Server]:
    """Every live server that was started with this `out`, current or left over from a start that was cut off."""
    ids = {view.server for view in views(repository) if view.out == str(out.absolute()) and alive(view)}
    server = current(out)
    found = [server] if server is not None else []
    for server_id in sorted(ids - {known.id for known in found}):
        with contextlib.suppress(BrimError):
            found.append(disk.load(Server, layout.server_folder(out, server_id) / "server.json"))
    return found


def sweep(out: Path, repository: Path) -> list[str]:
    """Clean up after servers that died without `brim down`; returns the ids of those."""
    dead = []
    for view in list(views(repository)):
        if not alive(view):
            dead.append(view.server)
            if view.container is None:
                end_leftovers(view.server)
            note_file(repository, view.server).unlink(missing_ok=True)
    server = current(out)
    if server is not None and not alive(server):
        forget(server, out)
        dead.append(server.id)
    return sorted(set(dead))


def end_process(pid: int, started_s: float | None) -> None:
    """SIGTERM and a wait, then SIGKILL to what is left of the process and its children; looks again before each."""
    import psutil

    family: list[psutil.Process] = []
    if same_process(started_s, process_started_s(pid)):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            family = [process, *process.children(recursive=True)]
            process.terminate()
        _wait_gone(pid, started_s)
    for member in family:
        with contextlib.suppress(psutil.Error):  # psutil compares the start time before it sends
            member.kill()
    _wait_gone(pid, started_s)


def _wait_gone(pid: int, started_s: float | None) -> None:
    deadline = time.monotonic() + _TERM_S
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):  # only the process that started it can reap it
            os.waitpid(pid, os.WNOHANG)
        if not same_process(started_s, process_started_s(pid)):
            return
        time.sleep(_POLL_S)


def end_leftovers(server_id: str) -> None:
    """End stubs that outlived their server and remove its shared memory; both bear the server's id in their names."""
    import psutil

    if not _ID.fullmatch(server_id):
        return
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.startswith(f"{server_id}-") for word in words):
            with contextlib.suppress(psutil.Error):
                process.kill()
    for region in SHM.glob(f"{server_id}-*"):
        with contextlib.suppress(OSError):
            region.unlink()
