"""The control side of a target over the protocol that its URL names: metadata, readiness, statistics; no inference."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any, Protocol

from brim import guard
from brim.errors import BrimError
from brim.guard import Endpoint
from brim.kserve import KServe, MemoryKind
from brim.records import Access, TargetLimit

UNREGISTER_EVERY_S = 0.1


class Control(Protocol):
    """Questions to a KServe v2 server, answered in the HTTP protocol's JSON shapes; NotReady in the server's words."""

    endpoint: Endpoint

    def metadata(self) -> dict[str, Any]: ...
    def model_ready(self, model: str, version: str = "") -> bool: ...
    def model_metadata(self, model: str, version: str = "") -> dict[str, Any]: ...
    def model_config(self, model: str, version: str = "") -> dict[str, Any]: ...
    def statistics(self, model: str, version: str = "") -> dict[str, Any]: ...
    def repository_index(self) -> list[dict[str, Any]]: ...
    def shared_memory(self, kind: MemoryKind) -> list[str]: ...
    def register_shared_memory(self, kind: MemoryKind, name: str, about: Mapping[str, Any]) -> None: ...
    def unregister_shared_memory(self, kind: MemoryKind, name: str) -> None: ...


def control(url: str, allowed: Mapping[str, TargetLimit], access: Access) -> Control:
    """The control side of the server at `url`; UsageError if Brim cannot ask it."""
    if guard.parse_url(url).scheme in ("grpc", "grpcs"):
        from loadtest.grpc_control import GrpcControl  # half a second, which only gRPC need pay

        return GrpcControl(url, allowed, access)
    return KServe(url, allowed, access)


def unregister(ask: Control, kind: MemoryKind, name: str, *, within_s: float = 0.0) -> None:
    """Ask until the server has forgotten the region or the time is over; what it keeps then goes at the next sweep."""
    deadline = time.monotonic() + within_s
    with contextlib.suppress(BrimError):  # it cannot be asked, or is gone, and with it every region
        while True:
            with contextlib.suppress(BrimError):
                return ask.unregister_shared_memory(kind, name)
            if time.monotonic() >= deadline or name not in ask.shared_memory(kind):
                return
            time.sleep(UNREGISTER_EVERY_S)
