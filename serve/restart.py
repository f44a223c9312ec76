"""Starts a server that Brim started anew: the same variants on the same ports, in a new process.

Reads and writes what serve.embedded and serve.docker_engine do.
"""

from __future__ import annotations

from pathlib import Path

from brim import guard
from brim.errors import UsageError
from brim.records import Server
from brim.say import Say
from serve import docker_engine, embedded, ledger, readiness
from serve.ports import Ports

_EMBEDDED_WAIT_S = 300.0
_DOCKER_WAIT_S = 900.0  # an engine may be built anew while it loads


def require_ours(server: Server | None, why: str) -> Server:
    """The server, if Brim may stop it; UsageError says who must do without."""
    if server is None or (server.container is None and server.pid is None):
        raise UsageError(f"{why} restarts the server, and Brim did not start this one; leave it out")
    return server


def restart(server: Server, *, out: Path, say: Say) -> Server:
    """Stop it and start it again; NotReady or NoResource if it does not come back."""
    if server.container is not None:
        return _restart_container(server, server.container, say)
    if server.repository is None:
        raise UsageError(f"{server.id} has no repository on record; start it with `brim serve`")
    ports = Ports(http=_port(server.http), grpc=_port(server.grpc), metrics=_port(server.metrics))
    ledger.stop(server, out)
    return embedded.start(
        server.variants, out=out, repository=Path(server.repository), say=say, ports=ports, cpus=server.cpus,
        wait_s=_EMBEDDED_WAIT_S,
    )  # fmt: skip


def _restart_container(server: Server, container: str, say: Say) -> Server:
    docker_engine.restart(container)
    answer = readiness.wait(
        url=server.http,
        server_id=server.id,
        variants=server.variants,
        log=lambda: docker_engine.log_lines(container),
        ended=lambda: None if docker_engine.running(container) else "the container stopped",
        wait_s=_DOCKER_WAIT_S,
        progress=say.progress,
    )
    readiness.require_one_ready(answer.states, Path(server.log or ""))
    return server


def _port(url: str | None) -> int | None:
    return guard.parse_url(url.removesuffix("/metrics")).port if url else None
