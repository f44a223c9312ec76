"""The process of a cluster's master: `python -m loadtest.senders.cluster_master ORDER PARENT_PID`.

Talks with `brim loadtest` in JSON lines on stdin and stdout, and with the workers through Locust's master. Reads the
spec of each load; senders.cluster_load does the rest.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Locust first: it patches the standard library, which nothing else may have taken apart before.
from loadtest.senders.cluster_link import MESSAGE, ClusterMaster, Link  # isort: skip
import gevent
import gevent.socket
from locust.env import Environment
from locust.exception import RPCError

import brim
from brim import codec, disk
from brim.errors import BrimError, NoResource, NotReady, UsageError
from brim.offspring import die_with
from brim.records import ROW_SCHEMA
from loadtest.cluster_wire import PROTOCOL, Hello, MasterOrder, Place, read_hello, surplus, unlike
from loadtest.driver import LoadSpec
from loadtest.senders.answers import clean
from loadtest.senders.cluster_load import MasterLoad, Member, outcome, write_all


def main(argv: list[str]) -> int:
    """Serve one measurement; its exit code only tells a crash, everything else is a JSON line."""
    die_with(int(argv[1]))
    tell = _teller()
    try:
        master = Master(codec.from_json(MasterOrder, argv[0], where="order"), tell)
        with master:
            master.gather()
            tell({"event": "ready"})
            master.serve()
    except BrimError as error:
        tell({"event": "error", "exit_code": error.exit_code, "message": str(error)})
    return 0


def _teller() -> Callable[[dict[str, Any]], None]:
    """JSON lines on what was stdout; what Locust prints there goes into the log instead."""
    lines = os.dup(1)
    os.dup2(2, 1)
    return lambda event: write_all(lines, json.dumps(event).encode() + b"\n")


def _commands() -> Iterator[dict[str, Any]]:
    """What the parent says on stdin, until it closes it."""
    unread = b""
    while True:
        gevent.socket.wait_read(0)
        data = os.read(0, 2**16)
        if not data:
            return
        *lines, unread = (unread + data).split(b"\n")
        yield from map(json.loads, lines)


class Master:
    """The workers of one measurement, and one load after the other."""

    def __init__(self, order: MasterOrder, tell: Callable[[dict[str, Any]], None]) -> None:
        self._order, self._tell = order, tell
        self._place = Place(host=order.host, port=order.port)
        self._own = Hello(host="", pid=0, token="", brim=brim.__version__, protocol=PROTOCOL, row_schema=ROW_SCHEMA)
        self._members: dict[str, Member] = {}  # by Locust's client id, in the order in which they came
        self._misfit = ""  # why a worker that came can never work with this master
        self._load: MasterLoad | None = None
        environment = Environment()
        try:
            self._runner = ClusterMaster(environment, order.host, order.port, self._hear)
        except (SystemExit, RPCError):  # Locust exits where the port is taken
            raise NoResource(
                f"--master {self._place}: cannot listen there; is the port taken, or the address another host's?"
            ) from None
        environment.runner = self._runner

    def __enter__(self) -> Master:
        return self

    def __exit__(self, *ended: object) -> None:
        """Tell every worker that it is over."""
        for member in self._members.values():
            member.link.say("bye")
        self._runner.quit()
        self._runner.server.close(linger=500)

    def gather(self) -> None:
        """Wait until all have come; NotReady says who did, UsageError names one that cannot work with us."""
        deadline = time.monotonic() + self._order.within_s
        while len(self._members) < self._order.workers:
            if self._misfit:
                raise UsageError(self._misfit)
            self._forget_the_gone()
            if time.monotonic() > deadline:
                who = ", ".join(m.name for m in self._members.values()) or "none"
                raise NotReady(
                    f"{len(self._members)} of {self._order.workers} workers came within {self._order.within_s:g} s "
                    f"({who}); on each load host: brim loadtest --worker {self._place}"
                )
            gevent.sleep(0.02)
        for member in self._members.values():
            clock = member.clock()
            self._tell({"event": "joined", "name": member.name, "clock": codec.to_plain(clock)})

    def _forget_the_gone(self) -> None:
        """Before anything is sent, one that has gone may be replaced."""
        for client_id, member in list(self._members.items()):
            error = outcome(member.link.other, member.link.check)
            if error is not None:
                self._tell({"event": "note", "message": str(error)})
                self._runner.forget(client_id)
                del self._members[client_id]

    def serve(self) -> None:
        """Do what the parent says until it says quit or is gone."""
        for command in _commands():
            if command["do"] == "quit":
                return
            if command["do"] == "stop" and self._load is not None:
                self._load.stop()
            if command["do"] == "load":
                gevent.spawn(self._run, Path(command["spec"]))

    def _run(self, spec_file: Path) -> None:
        """One load from its spec to its last file; whatever comes of it is told."""
        try:
            spec = disk.load(LoadSpec, spec_file)
            team = list(self._members.values())[: spec.point.senders]
            self._load = MasterLoad(spec, team)
            self._load.prepare()
            self._tell({"event": "started"})
            self._load.gather()
            self._tell({"event": "ended", "failures": self._load.failures, "no_room": self._load.no_room})
        except BrimError as error:
            self._tell({"event": "refused", "exit_code": error.exit_code, "message": str(error)})
        except Exception as error:  # a process boundary: the parent must not wait for ever
            self._tell({"event": "refused", "exit_code": 70, "message": f"bug in the cluster's master: {error!r}"})
        finally:
            self._load = None

    def _hear(self, client_id: str, message: Any) -> None:
        member = self._members.get(client_id)
        if member is not None:
            member.link.take(message)
        elif isinstance(message, dict) and message.get("kind") == "hello":
            self._introduced(client_id, message)

    def _introduced(self, client_id: str, message: dict[str, Any]) -> None:
        """Take a worker in, or say why not."""

        def say(data: dict[str, Any]) -> None:
            self._runner.send_message(MESSAGE, data, client_id)

        try:
            hello = read_hello(message)
            misfit = unlike(hello, self._own)
            joined = {m.hello.token: m.hello for m in self._members.values()}
            refusal = misfit or surplus(hello, joined, self._order.workers)
        except BrimError as error:
            misfit, refusal = "", f"a worker introduced itself wrongly ({clean(str(error))})"
        if refusal:
            self._misfit = self._misfit or misfit
            say({"kind": "refused", "message": refusal})
            self._runner.forget(client_id)
            self._tell({"event": "note", "message": f"refused: {refusal}"})
            return
        link = Link(f"worker {hello.name}", say)
        link.at_once["leaving"] = lambda told: setattr(link, "gone", "it was stopped on its host")
        self._members[client_id] = Member(client_id=client_id, hello=hello, link=link)
        link.say("welcome")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
