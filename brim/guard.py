"""The loopback guard: whatever Brim opens a socket to goes through here, at the place where it is opened.

A host is resolved once, every address is judged, and the connection goes to a judged address: no second look-up.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from brim import codec
from brim.errors import NotReady, UsageError, did_you_mean
from brim.records import TargetLimit

Resolver = Callable[..., Sequence[tuple[Any, ...]]]
SocketFactory = Callable[..., socket.socket]


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A judged place to connect to."""

    family: int
    host: str  # numeric
    port: int
    loopback: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A URL taken apart: scheme http, https, grpc or grpcs; host without brackets."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.netloc}"


def parse_url(url: str) -> Endpoint:
    """Take a target URL apart; user info, paths and foreign schemes are refused (UsageError)."""
    if "@" in url:  # first of all: no later message may repeat a secret
        raise UsageError("the target holds user info (…@host); leave it out and write http://host:port")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is not a URL ({error}); write http://host:port") from None
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or not parts.hostname:
        raise UsageError(f"{url!r} is not a target; write http://host:port or grpc://host:port")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise UsageError(f"{url!r} has a path; write only {parts.scheme}://host:port")
    if port == 0:
        raise UsageError(f"{url!r}: port 0 cannot be connected to; name the server's port")
    default = {"http": 8000, "https": 443, "grpc": 8001, "grpcs": 443}[parts.scheme]
    return Endpoint(scheme=parts.scheme, host=parts.hostname, port=port or default)


def read_allowed(project_file: Path | None) -> dict[str, TargetLimit]:
    """The `[targets]` allow-list of a project file: `[targets."host"]` with `max_rate_per_s`; {} without a file."""
    if project_file is None or not project_file.exists():
        return {}
    document = codec.read_toml(project_file, "--project")
    for key in document:
        if key != "targets":
            raise UsageError(f"{project_file}: unknown key {key!r}; {did_you_mean(key, ['targets'])}")
    tables = document.get("targets", {})
    if not isinstance(tables, dict):
        raise UsageError(
            f'{project_file}: targets = {tables!r} is no table; write [targets."HOST"] with max_rate_per_s'
        )
    allowed = {}
    for host, table in tables.items():
        where = f"{project_file}: [targets.{host!r}]"
        if not isinstance(table, dict) or "max_rate_per_s" not in table:
            raise UsageError(f"{where}: give it max_rate_per_s, the most that may be sent there")
        allowed[host.lower()] = codec.build(TargetLimit, {"host": host.lower(), **table}, where=where)
    return allowed


def judge(
    host: str, port: int, allowed: Mapping[str, TargetLimit], resolver: Resolver = socket.getaddrinfo
) -> list[Address]:
    """Every address of `host`, all of them loopback unless `host` itself is allowed.

    UsageError if any address is not loopback and the host is not allowed; NotReady if the name does not resolve.
    """
    try:
        found = resolver(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NotReady(f"{host}: the name does not resolve ({error}); check the target") from None
    addresses = [
        Address(family=int(family), host=str(where[0]), port=port, loopback=_is_loopback(str(where[0])))
        for family, _, _, _, where in found
    ]
    if not addresses:
        raise NotReady(f"{host}: the name has no address; check the target")
    outside = [a.host for a in addresses if not a.loopback]
    if outside and host not in allowed:
        raise UsageError(
            f"{host} is {outside[0]}, not this machine; nothing was sent. If it is yours to load: --allow-remote {host}"
        )
    return addresses


def _is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_loopback


def connect(
    host: str,
    port: int,
    allowed: Mapping[str, TargetLimit],
    *,
    timeout_s: float,
    resolver: Resolver = socket.getaddrinfo,
    socket_factory: SocketFactory = socket.socket,
) -> socket.socket:
    """A connected TCP socket without Nagle's delay; NotReady names host and port if nobody answers."""
    failure: OSError | None = None
    for address in judge(host, port, allowed, resolver):
        sock = socket_factory(address.family, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            sock.connect((address.host, address.port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except OSError as error:
            sock.close()
            failure = error
    raise NotReady(f"{host}:{port} does not answer ({failure}); is the server up? `make serve` starts one")
