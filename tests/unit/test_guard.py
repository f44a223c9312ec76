"""The loopback guard, with an injected resolver and socket: nothing outside this machine is ever contacted."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from brim import guard
from brim.errors import NotReady, UsageError
from brim.records import TargetLimit

OUTSIDE = "203.0.113.7"  # reserved for documentation
ALLOWED = {"gpu.example": TargetLimit(host="gpu.example", max_rate_per_s=10.0)}


def resolved_to(*addresses: str) -> guard.Resolver:
    def resolver(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        family = [socket.AF_INET6 if ":" in a else socket.AF_INET for a in addresses]
        return [(f, socket.SOCK_STREAM, 6, "", (a, port)) for f, a in zip(family, addresses, strict=True)]

    return resolver


class SocketLog:
    """Stands in for socket.socket: notes where it would have gone, and goes nowhere."""

    def __init__(self, refuse: int = 0) -> None:
        self.connected: list[tuple[str, int]] = []
        self._refuse = refuse

    def __call__(self, family: int, kind: int) -> Any:
        return self

    def settimeout(self, seconds: float) -> None: ...

    def setsockopt(self, *option: int) -> None: ...

    def close(self) -> None: ...

    def connect(self, where: tuple[str, int]) -> None:
        self.connected.append(where)
        if len(self.connected) <= self._refuse:
            raise ConnectionRefusedError(111, "Connection refused")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "::ffff:127.8.9.1"])
def test_every_way_to_write_loopback_passes(address: str) -> None:
    assert [a.host for a in guard.judge("some.name", 8000, {}, resolved_to(address))] == [address]


def test_localhost_and_numeric_loopback_pass_with_the_real_resolver() -> None:
    for host in ("127.0.0.1", "localhost"):
        assert all(a.loopback for a in guard.judge(host, 8000, {}))


@pytest.mark.parametrize(
    "address",
    [OUTSIDE, "0.0.0.0", "10.0.0.1", "169.254.169.254", "128.0.0.1", "::", "2001:db8::1", "::ffff:203.0.113.7"],
)
def test_whatever_is_not_loopback_is_refused_with_the_flag_that_would_allow_it(address: str) -> None:
    with pytest.raises(UsageError, match="--allow-remote some.name"):
        guard.judge("some.name", 8000, {}, resolved_to(address))


@pytest.mark.parametrize("addresses", [("127.0.0.1", OUTSIDE), (OUTSIDE, "127.0.0.1"), ("::1", OUTSIDE)])
def test_a_name_with_one_outside_address_among_loopback_ones_is_refused(addresses: tuple[str, ...]) -> None:
    log = SocketLog()
    with pytest.raises(UsageError):
        guard.connect("mixed.example", 8000, {}, timeout_s=1, resolver=resolved_to(*addresses), socket_factory=log)
    assert log.connected == []


def test_an_allowed_host_is_connected_at_its_judged_address() -> None:
    log = SocketLog()
    guard.connect("gpu.example", 8000, ALLOWED, timeout_s=1, resolver=resolved_to(OUTSIDE), socket_factory=log)
    assert log.connected == [(OUTSIDE, 8000)]


def test_allowing_one_host_allows_no_other_name_of_the_same_address() -> None:
    with pytest.raises(UsageError):
        guard.judge("other.example", 8000, ALLOWED, resolved_to(OUTSIDE))


def test_a_name_that_answers_differently_the_second_time_is_not_asked_a_second_time() -> None:
    answers = iter([resolved_to("127.0.0.1"), resolved_to(OUTSIDE)])
    log = SocketLog()

    def rebinding(host: str, port: int, **options: Any) -> Any:
        return next(answers)(host, port, **options)

    guard.connect("rebind.example", 8000, {}, timeout_s=1, resolver=rebinding, socket_factory=log)
    assert log.connected == [("127.0.0.1", 8000)]
    assert next(answers, None) is not None  # the second answer was never fetched


def test_the_next_address_is_tried_when_the_first_refuses() -> None:
    log = SocketLog(refuse=1)
    guard.connect("localhost", 8000, {}, timeout_s=1, resolver=resolved_to("::1", "127.0.0.1"), socket_factory=log)
    assert log.connected == [("::1", 8000), ("127.0.0.1", 8000)]


def test_a_server_that_is_not_there_is_named_with_the_next_step() -> None:
    with pytest.raises(NotReady, match=r"localhost:8000 .*refused.*make serve"):
        guard.connect(
            "localhost",
            8000,
            {},
            timeout_s=1,
            resolver=resolved_to("127.0.0.1"),
            socket_factory=SocketLog(refuse=1),
        )


def test_a_name_that_does_not_resolve_is_not_ready() -> None:
    def fails(host: str, port: int, **_: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(NotReady, match="does not resolve"):
        guard.judge("nowhere.invalid", 8000, {}, fails)
    with pytest.raises(NotReady, match="no address"):
        guard.judge("nowhere.invalid", 8000, {}, resolved_to())


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1@evil.example:8000",
        "http://user:secret@127.0.0.1:8000",
        "http://user:secret@127.0.0.1:70000",
        "ftp://user:secret@127.0.0.1",
        "user:secret@127.0.0.1:8000",
        "http://127.0.0.1:8000/v2",
        "http://127.0.0.1:8000?x=1",
        "http://127.0.0.1:70000",
        "http://127.0.0.1:0",
        "http://127.0.0.1:port",
        "ftp://127.0.0.1",
        "127.0.0.1:8000",
        "http://",
        "http://[::1",
        "",
    ],
)
def test_what_is_not_plainly_a_target_is_refused_and_no_secret_is_repeated(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        guard.parse_url(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://127.0.0.1:9000", ("http", "127.0.0.1", 9000)),
        ("http://localhost", ("http", "localhost", 8000)),
        ("http://localhost/", ("http", "localhost", 8000)),
        ("http://[::1]:8000", ("http", "::1", 8000)),
        ("grpc://gpu.example", ("grpc", "gpu.example", 8001)),
        ("https://gpu.example", ("https", "gpu.example", 443)),
    ],
)
def test_a_target_is_taken_apart(url: str, endpoint: tuple[str, str, int]) -> None:
    found = guard.parse_url(url)
    assert (found.scheme, found.host, found.port) == endpoint
    assert guard.parse_url(found.url) == found


def test_the_allow_list_names_hosts_with_their_rates(tmp_path: Path) -> None:
    file = tmp_path / "brim.toml"
    file.write_text('[targets."gpu.example"]\nmax_rate_per_s = 10\n')
    assert guard.read_allowed(file) == ALLOWED
    assert guard.read_allowed(None) == guard.read_allowed(tmp_path / "none.toml") == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[targets."gpu.example"]\n', "max_rate_per_s"),
        ('[targets."gpu.example"]\nmax_rate_per_s = "fast"\n', "a number"),
        ('[targets."gpu.example"]\nmax_rate_per_s = 1\nmax_rat = 2\n', "did you mean"),
        ("targets = [", "brim.toml"),
        ("targets = 3\n", r'write \[targets\."HOST"\]'),
        ('[target."gpu.example"]\nmax_rate_per_s = 1\n', "unknown key 'target'; did you mean 'targets'"),
    ],
)
def test_a_broken_allow_list_allows_nothing_and_says_why(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "brim.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=told):
        guard.read_allowed(file)


def test_a_folder_where_the_allow_list_should_be_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read .*--project"):
        guard.read_allowed(tmp_path)
