"""Locust's own master and worker runners, made fit to meet strangers, and the conversation over their messages.

Both ends use one custom message of Locust's (`brim`), whose data is a plain dict with a `kind`. Reads and writes the
files that travel.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Locust first: it patches the standard library, which nothing else may have taken apart before.
from locust import runners  # isort: skip
import gevent
import gevent.event
import gevent.queue
import zmq
from locust.exception import RPCError
from locust.rpc import zmqrpc

from brim import disk
from brim.errors import InvalidRecord, Lost
from loadtest.cluster_wire import LOOK_S, MESSAGE_LIMIT_BYTES, SILENT_S, Arriving, Silence, Whole, chunks, take, whole

MESSAGE = "brim"
#: What each side takes of Locust's own messages. Not among them: whatever carries code, options or log lines.
FROM_WORKERS = frozenset(
    {"client_ready", "heartbeat", "stats", "spawning", "spawning_complete", "client_stopped", "exception", MESSAGE}
)
FROM_MASTER = frozenset({"ack", "heartbeat", MESSAGE})

#: Locust judges the master's silence by the wall clock, which a time server may set; a Link does by the monotonic one.
runners.MASTER_HEARTBEAT_TIMEOUT = 10**9


class BoundedServer(zmqrpc.BaseSocket):  # type: ignore[misc]  # Locust is not annotated
    """Locust's listening socket, but for a limit on one message, which must be set before the socket is bound."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(zmq.ROUTER, self.ipv4_only(host, port))
        self.socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_LIMIT_BYTES)
        try:
            self.socket.bind(f"tcp://{host}:{port}")
        except zmq.ZMQError as error:
            raise RPCError(f"Socket bind failure: {error}") from error


runners.rpc.Server = BoundedServer  # Locust's master makes its socket itself


class ClusterMaster(runners.MasterRunner):  # type: ignore[misc]  # Locust is not annotated
    """Locust's master: whatever a stranger sends it, it goes on listening, and serves no locustfile."""

    def __init__(self, environment: Any, host: str, port: int, hear: Callable[[str, Any], None]) -> None:
        """Listen; `hear` is called with a client's id and what it said (None for Locust's own messages)."""
        self._hear = hear
        super().__init__(environment, master_bind_host=f"[{host}]" if ":" in host else host, master_bind_port=port)
        self.register_message(MESSAGE, lambda environment, msg: self._hear(msg.node_id, msg.data))

    def client_listener(self) -> None:
        while True:
            try:
                client_id, message = self.server.recv_from_client()
                message.node_id = client_id  # whoever it says it is
                self.handle_message(client_id, message)
            except Exception as error:
                logging.warning("a message was not understood: %r", error)
                gevent.sleep(0.01)  # a broken socket must not spin

    def handle_message(self, client_id: str, msg: Any) -> None:
        if msg.type in FROM_WORKERS:
            if msg.type != MESSAGE:
                self._hear(client_id, None)
            super().handle_message(client_id, msg)

    def forget(self, client_id: str) -> None:
        """A worker that was refused or lost is none of ours."""
        self.clients.pop(client_id, None)


class ClusterWorker(runners.WorkerRunner):  # type: ignore[misc]  # Locust is not annotated
    """Locust's worker: takes no code and no options from its master."""

    hear: Callable[[Any], None] = staticmethod(lambda message: None)

    def worker(self) -> None:
        while True:
            try:
                self.handle_message(self.client.recv())
            except Exception as error:
                logging.warning("a message was not understood: %r", error)
                gevent.sleep(0.01)

    def handle_message(self, msg: Any) -> None:
        if msg.type in FROM_MASTER:
            if msg.type != MESSAGE:
                self.hear(None)
            super().handle_message(msg)


class Link:
    """One end of the conversation between the master and one worker: messages in their order, files in chunks."""

    def __init__(self, other: str, say: Callable[[dict[str, Any]], None]) -> None:
        self.other, self._say = other, say
        #: Kinds that are dealt with as they arrive, whatever this end is busy with.
        self.at_once: dict[str, Callable[[Mapping[str, Any]], None]] = {"ack": self._acknowledged}
        self.gone = ""  # why the other end is not there any more
        self._inbox: gevent.queue.Queue = gevent.queue.Queue()
        self._acks: gevent.queue.Queue = gevent.queue.Queue()
        self._silence = Silence(time.monotonic())

    def say(self, kind: str, **fields: Any) -> None:
        self._say({"kind": kind, **fields})

    def take(self, message: Any) -> None:
        """Something came from the other end: a message, or any sign of life (None)."""
        self._silence.broken(time.monotonic())
        if not isinstance(message, dict):
            return
        message["heard_ns"] = time.monotonic_ns()
        kind = message.get("kind")
        if kind in self.at_once:
            self.at_once[kind](message)
        else:
            self._inbox.put(message)

    def check(self) -> None:
        """Lost if the other end has gone or says nothing any more."""
        if self._silence.look(time.monotonic()) > SILENT_S and not self.gone:
            self.gone = f"said nothing for {SILENT_S:g} s"
        if self.gone:
            raise Lost(f"{self.other} was lost: {self.gone}")

    def hear(self, *kinds: str, within_s: float | None = None) -> dict[str, Any]:
        """The next message, of one of these kinds; Lost if the other end is, or takes longer than `within_s`."""
        message: dict[str, Any] = self._next(self._inbox, within_s)
        if message.get("kind") not in kinds:
            raise InvalidRecord(f"{self.other} said {message.get('kind')!r} where {' or '.join(kinds)} was due")
        return message

    def send_file(self, name: str, file: Path) -> None:
        """A whole file, each chunk after the one before was acknowledged."""
        with disk.told(file):
            data = file.read_bytes()
        promised = whole(data)
        self.say("file", name=name, size=promised.size, sha256=promised.sha256)
        for offset, chunk in chunks(data):
            self.send_chunk(offset, chunk)

    def send_chunk(self, offset: int, chunk: bytes) -> None:
        self.say("chunk", offset=offset, data=chunk)
        self._next(self._acks, None)

    def receive_file(self, announced: Mapping[str, Any], folder: Path) -> Path:
        """The file that a `file` message announced, put into `folder`; InvalidRecord if it is not what was sent."""
        name = take(announced, "name", str)
        if name != Path(name).name or name.startswith("."):
            raise InvalidRecord(f"{self.other} named a file {name[:80]!r}")
        promised = Whole(size=take(announced, "size", int), sha256=take(announced, "sha256", str))
        arriving = Arriving(f"{self.other}: {name}")
        disk.make_folder(folder)
        with disk.told(folder / name), (folder / name).open("wb") as stream:
            while arriving.size < promised.size:
                stream.write(self.receive_chunk(self.hear("chunk"), arriving))
        arriving.end(promised)
        return folder / Path(name)

    def receive_chunk(self, message: Mapping[str, Any], arriving: Arriving) -> bytes:
        data: bytes = take(message, "data", bytes)
        arriving.add(take(message, "offset", int), data)
        self.say("ack")
        return data

    def _acknowledged(self, message: Mapping[str, Any]) -> None:
        self._acks.put(message)

    def _next(self, queue: Any, within_s: float | None) -> dict[str, Any]:
        deadline = None if within_s is None else time.monotonic() + within_s
        while True:
            self.check()
            try:
                return queue.get(timeout=LOOK_S)  # type: ignore[no-any-return]
            except gevent.queue.Empty:
                if deadline is not None and time.monotonic() > deadline:
                    raise Lost(f"{self.other} was lost: it is there, but took longer than {within_s:g} s") from None
