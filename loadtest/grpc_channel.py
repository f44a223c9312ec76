"""The way to a gRPC server: through the guard to one numeric address, in the clear or inside TLS, past every proxy.

Reads the files that an Access names; what a channel is opened with, synchronous or asyncio, is the same.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import grpc
import grpc.aio

from brim import guard
from brim.access import metadata, open_tls, read_pem, ssl_context
from brim.errors import NotReady, UsageError
from brim.guard import Endpoint
from brim.records import Access, TargetLimit

#: What every channel is told: no proxy, no look-up of settings by name, no hidden second attempt, no limit on messages
#: (-1), connections of its own, and after a lost connection a new attempt soon.
_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.enable_retries", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What a channel to one judged address is opened with, and what goes with every call."""

    address: str  # numeric, in gRPC's notation
    options: tuple[tuple[str, int | str], ...]
    credentials: grpc.ChannelCredentials | None  # None = in the clear
    metadata: tuple[tuple[str, str], ...]


def route(url: str, allowed: Mapping[str, TargetLimit], access: Access, *, timeout_s: float) -> Route:
    """The way to the server at `url`; NotReady if nobody answers there, UsageError if it is not to be asked."""
    endpoint = guard.parse_url(url)
    if endpoint.scheme not in ("grpc", "grpcs"):
        raise UsageError(f"{url}: gRPC goes over grpc:// or grpcs://")
    secure, told = endpoint.scheme == "grpcs", metadata(access)
    with guard.connect(endpoint.host, endpoint.port, allowed, timeout_s=timeout_s) as sock:
        host, port = sock.getpeername()[:2]
        if secure:  # gRPC says of a failed handshake only that the server is unavailable; this one says why
            with open_tls(sock, http2_context(access), endpoint) as tls:
                require_http2(tls, endpoint)
    name = (("grpc.ssl_target_name_override", endpoint.host),) if secure else ()
    return Route(
        address=f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}",
        options=(*_OPTIONS, ("grpc.default_authority", endpoint.netloc), *name),
        credentials=_credentials(access) if secure else None,
        metadata=told,
    )


def http2_context(access: Access) -> ssl.SSLContext:
    """What access.ssl_context makes, asking for HTTP/2."""
    context = ssl_context(access)
    context.set_alpn_protocols(["h2"])
    return context


def require_http2(tls: ssl.SSLSocket | ssl.SSLObject, endpoint: Endpoint) -> None:
    """NotReady unless the other side agreed to HTTP/2 in the TLS handshake (ALPN), as gRPC demands."""
    if tls.selected_alpn_protocol() != "h2":
        raise NotReady(f"{endpoint.url}: the server offers no HTTP/2 inside TLS; is this its gRPC port?")


def opened(way: Route) -> grpc.Channel:
    """A synchronous channel that way."""
    if way.credentials is None:
        return grpc.insecure_channel(way.address, options=way.options)
    return grpc.secure_channel(way.address, way.credentials, options=way.options)


def opened_aio(way: Route, compression: grpc.Compression | None = None) -> grpc.aio.Channel:
    """An asyncio channel that way."""
    if way.credentials is None:
        return grpc.aio.insecure_channel(way.address, options=way.options, compression=compression)
    return grpc.aio.secure_channel(way.address, way.credentials, options=way.options, compression=compression)


def _credentials(access: Access) -> grpc.ChannelCredentials:
    pem = read_pem(access)
    return grpc.ssl_channel_credentials(root_certificates=pem.ca, private_key=pem.key, certificate_chain=pem.cert)
