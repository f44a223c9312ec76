"""The rate of an interface, from what the system says of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from loadtest.link import interface_bytes_per_s

ADDRESSES = {
    "lo": [SimpleNamespace(address="127.0.0.1")],
    "eth0": [SimpleNamespace(address="10.1.2.3"), SimpleNamespace(address="fe80::1%eth0")],
    "tun0": [SimpleNamespace(address="10.9.9.9")],
}
STATS = {"lo": SimpleNamespace(speed=0), "eth0": SimpleNamespace(speed=10_000), "tun0": SimpleNamespace(speed=0)}


@pytest.mark.parametrize(
    ("own", "rate"),
    [("10.1.2.3", 1.25e9), ("fe80::1", 1.25e9), ("10.9.9.9", None), ("192.0.2.1", None), (None, None)],
)
def test_ten_gigabit_are_1_25_gigabytes_a_second_and_what_has_no_rate_has_none(own: str | None, rate: float) -> None:
    found = interface_bytes_per_s(
        "server", 8000, own_address=lambda host, port: own, addresses=lambda: ADDRESSES, stats=lambda: STATS
    )
    assert found == rate


def test_the_loopback_has_no_rate() -> None:
    assert interface_bytes_per_s("127.0.0.1", 8000) is None
