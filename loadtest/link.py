"""How many bytes a second the network interface towards a host carries, as its driver tells it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil

MEGABIT_BYTES = 125_000


def interface_bytes_per_s(
    host: str,
    port: int,
    *,
    own_address: Callable[[str, int], str | None] | None = None,
    addresses: Callable[[], Mapping[str, Sequence[Any]]] = psutil.net_if_addrs,
    stats: Callable[[], Mapping[str, Any]] = psutil.net_if_stats,
) -> float | None:
    """Bytes/s of the interface that the kernel would send from; None where it has no such rate (tunnels, some VMs)."""
    own = (own_address or _own_address)(host, port)
    for name, known in addresses().items():
        if own is not None and any(entry.address.partition("%")[0] == own for entry in known):
            megabits = stats()[name].speed if name in stats() else 0
            return megabits * MEGABIT_BYTES if megabits > 0 else None
    return None


def _own_address(host: str, port: int) -> str | None:
    """Which of our addresses faces the host: asked of the routing table, nothing is sent."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    except OSError:
        return None
