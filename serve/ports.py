"""Picks the three ports of a server on loopback, and says who holds one that was asked for.

Reads: the sockets of this machine. Writes: nothing.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass, fields

from brim.errors import NoResource, UsageError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where a server listens; None = any free one."""

    http: int | None = None
    grpc: int | None = None
    metrics: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedPorts:
    """Three different ports that were free a moment ago."""

    http: int
    grpc: int
    metrics: int


def pick(wanted: Ports, preferred: PickedPorts | None = None) -> PickedPorts:
    """A free port for each; one that was asked for and is taken is NoResource, a preferred one that is taken is not.

    All are held until the last is found, so that no two are the same.
    """
    _refuse_doubles(wanted)
    with contextlib.ExitStack() as held:
        asked = {f.name: _hold(held, f.name, getattr(wanted, f.name)) for f in fields(Ports) if getattr(wanted, f.name)}
        for field in fields(Ports):
            if field.name not in asked:
                asked[field.name] = _hold_any(held, getattr(preferred, field.name) if preferred else 0)
        return PickedPorts(**asked)


def _refuse_doubles(wanted: Ports) -> None:
    given = [port for f in fields(Ports) if (port := getattr(wanted, f.name)) is not None]
    doubled = next((port for port in given if given.count(port) > 1), None)
    if doubled is not None:
        raise UsageError(f"port {doubled} is given twice; HTTP, gRPC and metrics need one each")


def _hold(held: contextlib.ExitStack, kind: str, port: int) -> int:
    try:
        return _bind(held, port)
    except PermissionError:
        raise NoResource(f"port {port} may not be opened by this user; choose --{kind}-port above 1023") from None
    except OSError:
        raise NoResource(
            f"port {port} is taken{_by_whom(port)}; choose another --{kind}-port, or leave it out for a free one"
        ) from None


def _hold_any(held: contextlib.ExitStack, preferred: int) -> int:
    try:
        return _bind(held, preferred)
    except OSError:
        return _bind(held, 0)


def _bind(held: contextlib.ExitStack, port: int) -> int:
    sock = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: TIME_WAIT is not in the way
    sock.bind((LOOPBACK, port))
    return int(sock.getsockname()[1])


def _by_whom(port: int) -> str:
    holder = holder_of(port)
    return f" by pid {holder[0]} ({holder[1]})" if holder else ""


def holder_of(port: int) -> tuple[int, str] | None:
    """Pid and name of the process that listens on `port`, as far as this user may know."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return connection.pid, psutil.Process(connection.pid).name()
    return None
