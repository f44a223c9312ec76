"""Starts the tritonserver of `.tools/` on this machine, on loopback only, as a process that outlives the command.

Reads: .tools/, model_repository/<variant>/. Writes: out/servers/<id>/{repository/, server.json, log}.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from brim import disk, layout
from brim.errors import NoResource, NotReady
from brim.offspring import undisturbed
from brim.records import Server, Variant
from brim.say import Say
from serve import choice, host, ledger, prerequisites, readiness
from serve.ports import LOOPBACK, PickedPorts, Ports, pick

#: Another process can take a port between our look and the server's bind.
_ATTEMPTS = 3
# Reads the server's pid, then one more line. If the pipe closes without that, whoever was to write it is gone
# (killed, or interrupted twice): then the half-started server, its stubs, its shared memory and its note go too.
_WATCH = 'read -r pid || exit 0; read -r word || { kill -s KILL -- "-$pid"; rm -f -- "/dev/shm/$1-"* "$2"; }'


def argv(program: Path, repository: Path, backends: Path, ports: PickedPorts, server_id: str) -> list[str]:
    """The command line of the embedded server."""
    return [
        str(program),
        f"--id={server_id}",
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        f"--http-address={LOOPBACK}",
        f"--grpc-address={LOOPBACK}",
        f"--metrics-address={LOOPBACK}",
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
        "--model-control-mode=none",  # what is served cannot be changed from outside
        "--exit-on-error=false",  # one broken variant must not end the others
        "--disable-auto-complete-config",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        "--exit-timeout-secs=5",
        f"--backend-config=python,shm-region-prefix-name={server_id}-",
        "--backend-config=python,stub-timeout-seconds=120",  # 30 by default: short for a cold disk and busy cores
    ]


def start(
    variants: Sequence[str],
    *,
    out: Path,
    repository: Path,
    say: Say,
    ports: Ports | None = None,
    cpus: Sequence[int] = (),
    wait_s: float = 300.0,
) -> Server:
    """Start a server on these variants and wait until each is loaded or refused; it becomes `current`.

    NotReady if it ends, does not get there in `wait_s`, or no variant is ready; then nothing of it is left running.
    """
    with _up(
        variants, out=out, repository=repository, say=say, ports=ports or Ports(), cpus=cpus, wait_s=wait_s
    ) as server:
        return server


@contextlib.contextmanager
def for_a_while(
    variants: Sequence[str], *, out: Path, repository: Path, say: Say, wait_s: float, cpus: Sequence[int] = ()
) -> Iterator[Server]:
    """A server for the length of the block: stopped in order at its end, at once if this process is killed."""
    with _up(variants, out=out, repository=repository, say=say, ports=Ports(), cpus=cpus, wait_s=wait_s) as server:
        try:
            yield server
        finally:
            ledger.stop(server, out)


@contextlib.contextmanager
def _up(
    variants: Sequence[str], *, out: Path, repository: Path, say: Say, ports: Ports, cpus: Sequence[int], wait_s: float
) -> Iterator[Server]:
    """The server once it is ready, which ends with us as long as the block runs."""
    stub = prerequisites.check()
    for attempt in range(1, _ATTEMPTS + 1):
        picked = pick(ports)
        server_id = ledger.new_id()
        folder = view_folder(out, server_id, repository, variants)
        command = argv(layout.tritonserver(), folder / "repository", layout.triton_backends(), picked, server_id)
        environment = prerequisites.environment(stub, folder, os.environ)
        with contextlib.ExitStack() as held:
            try:
                server = held.enter_context(
                    _started(
                        command,
                        environment,
                        picked,
                        variants,
                        out=out,
                        repository=repository,
                        say=say,
                        cpus=cpus,
                        wait_s=wait_s,
                    )
                )
            except NotReady:
                if attempt == _ATTEMPTS or not readiness.port_was_taken(readiness.tail(folder / "log")):
                    raise
                say.detail(f"a port of {server_id} was taken meanwhile; once more")
                continue
            yield server
            return


def require_shared_memory(variants: Sequence[Variant]) -> None:
    """NoResource unless /dev/shm has room for what the stubs of these variants will take of it."""
    need, free = choice.shared_memory_bytes(variants), host.free_bytes(ledger.SHM)
    if need > free:
        raise NoResource(
            f"{ledger.SHM} has {free / 2**20:.0f} MiB left, these variants need {need / 2**20:.0f}; serve fewer, use a "
            "smaller max_batch, or make it larger (docker: --shm-size)"
        )


def view_folder(out: Path, server_id: str, repository: Path, variants: Sequence[str]) -> Path:
    """The server's folder with `repository/`: one link for each variant, and nothing else for Triton to find."""
    folder = layout.server_folder(out, server_id).absolute()
    links = disk.make_folder(folder / "repository")
    for variant in variants:
        source = (repository / variant).absolute()
        if not source.is_dir():
            raise NotReady(f"{source} is not there; `brim serve` writes variants before it starts a server")
        with disk.told(links):
            (links / variant).symlink_to(source)
    return folder


@contextlib.contextmanager
def _started(
    command: Sequence[str],
    environment: dict[str, str],
    ports: PickedPorts,
    variants: Sequence[str],
    *,
    out: Path,
    repository: Path,
    say: Say,
    cpus: Sequence[int],
    wait_s: float,
) -> Iterator[Server]:
    folder = Path(environment["BRIM_SERVER_FOLDER"])
    log = folder / "log"
    note = ledger.note_file(repository, folder.name)
    with _spawned(command, environment, cpus, server_id=folder.name, note=note) as pid:
        server = Server(
            id=folder.name,
            mode="embedded",
            http=f"http://{LOOPBACK}:{ports.http}",
            grpc=f"grpc://{LOOPBACK}:{ports.grpc}",
            metrics=f"http://{LOOPBACK}:{ports.metrics}/metrics",
            pid=pid,
            process_started_s=ledger.process_started_s(pid),
            version="",
            variants=tuple(variants),
            repository=str(repository.absolute()),
            log=str(log),
            cpus=tuple(cpus),
        )
        ledger.note(server, out)
        say.progress(f"{server.id}: tritonserver starts on {server.http}")
        answer = readiness.wait(
            url=server.http,
            server_id=server.id,
            variants=variants,
            log=lambda: readiness.tail(log),
            ended=lambda: _how_it_ended(pid),
            wait_s=wait_s,
            progress=say.progress,
        )
        readiness.require_one_ready(answer.states, log)
        server = replace(server, version=answer.version)
        ledger.make_current(server, out)
        yield server


def _spawn(command: Sequence[str], environment: dict[str, str], log: Path, cpus: Sequence[int]) -> int:
    """The pid of a process in a session of its own, so that Ctrl-C in the terminal does not reach it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    before = os.sched_getaffinity(0)
    with disk.told(log):
        log.touch()
    try:
        if cpus:
            os.sched_setaffinity(0, cpus)  # inherited by the child from its first instruction on
        return os.posix_spawn(
            command[0],
            list(command),
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM],
        )
    except OSError as error:
        raise NotReady(f"{command[0]} does not start ({error}); `brim doctor` says what is missing") from error
    finally:
        os.sched_setaffinity(0, before)


def _how_it_ended(pid: int) -> str | None:
    """None while the child runs; otherwise by which code or signal it ended."""
    try:
        reaped, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return "reaped already"
    if reaped == 0:
        return None
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"exit code {code}"


@contextlib.contextmanager
def _spawned(
    command: Sequence[str], environment: dict[str, str], cpus: Sequence[int], *, server_id: str, note: Path
) -> Iterator[int]:
    """The pid of the server, which ends with us while the block runs, however we end, and here if the block raises."""
    pipe, watcher = _start_watcher(server_id, note)
    pid: int | None = None
    try:
        with undisturbed():
            pid = _spawn(command, environment, Path(environment["BRIM_SERVER_FOLDER"]) / "log", cpus)
            os.write(pipe, f"{pid}\n".encode())
        yield pid
    except BaseException:
        if pid is not None:
            _end_now(pid)
        ledger.end_leftovers(server_id)
        note.unlink(missing_ok=True)
        raise
    finally:
        with contextlib.suppress(BrokenPipeError):
            os.write(pipe, b"enough\n")
        os.close(pipe)
        os.waitpid(watcher, 0)


def _start_watcher(server_id: str, note: Path) -> tuple[int, int]:
    """The end of a pipe that only this process holds open, and the pid of the shell that waits at the other."""
    reading, writing = os.pipe()
    watcher = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", _WATCH, "brim-watch", server_id, str(note)],
        {"PATH": "/usr/bin:/bin"},
        file_actions=[(os.POSIX_SPAWN_DUP2, reading, 0)],
        setsid=True,
    )
    os.close(reading)
    return writing, watcher


def _end_now(pid: int) -> None:
    """Kill a child with its group at once. Until it is reaped, its pid can be nobody else's."""
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        if os.waitpid(pid, os.WNOHANG)[0] == 0:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
