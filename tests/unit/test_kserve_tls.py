"""Control questions inside TLS: what each thing that can be wrong with TLS is called, and what to do next."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from brim.errors import NotReady
from brim.kserve import KServe
from brim.records import Access
from tests.fakes import FakeServer
from tests.tls import OPENSSL, Authority, Kind, TlsProxy

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="no openssl program here to make certificates with")

WANTED, DENIED = "the server wants a client certificate", "the server refused our client certificate"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer() as started:
        yield started


def trusting(authority: Authority) -> Access:
    return Access(tls_ca=str(authority.own.cert))


def refusal(url: str, access: Access, timeout_s: float = 5.0) -> str:
    """The one line that says why there was no answer; it begins with what was asked."""
    with pytest.raises(NotReady) as caught:
        KServe(url, access=access, timeout_s=timeout_s).metadata()
    told = str(caught.value)
    assert told.startswith(f"{url}")
    assert "\n" not in told
    return told


def test_a_server_inside_tls_answers_by_address_and_by_name(server: FakeServer, authority: Authority) -> None:
    with TlsProxy(server.port, authority.server()) as proxy:
        for url in (proxy.url, f"https://localhost:{proxy.port}"):
            assert KServe(url, access=trusting(authority)).metadata()["name"] == "fake"
        assert proxy.headers("Host") == [f"127.0.0.1:{proxy.port}", f"localhost:{proxy.port}"]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("expired", "the server's certificate has expired"),
        ("other_host", "the server's certificate is not for 127.0.0.1; use the name that it is for"),
        ("self_signed", "the server's certificate is self-signed; if it is the right one, trust it with --tls-ca FILE"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_said(
    kind: Kind, told: str, server: FakeServer, authority: Authority
) -> None:
    with TlsProxy(server.port, authority.server(kind)) as proxy:
        assert told in refusal(proxy.url, trusting(authority))
        assert proxy.heads == []


def test_an_authority_that_nobody_named_is_unknown(server: FakeServer, authority: Authority, tmp_path: Path) -> None:
    other = Access(tls_ca=str(Authority(tmp_path).own.cert))
    with TlsProxy(server.port, authority.server()) as proxy:
        for access in (Access(), other):
            assert "the authority of the server's certificate is unknown here" in refusal(proxy.url, access)
            assert "--tls-ca FILE" in refusal(proxy.url, access)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_certificate_that_is_wanted_or_refused_is_said(
    version: ssl.TLSVersion, server: FakeServer, authority: Authority, tmp_path: Path
) -> None:
    own, foreign = authority.client(), Authority(tmp_path).client()
    ca = str(authority.own.cert)
    proxy = TlsProxy(server.port, authority.server(), clients_of=authority)
    proxy.context.maximum_version = version
    with proxy:
        # In TLS 1.3 our request and the server's verdict may pass each other; then only the end of it is seen.
        late = version == ssl.TLSVersion.TLSv1_3
        wanted, denied = ("client certificate", "client certificate") if late else (WANTED, DENIED)
        assert wanted in refusal(proxy.url, trusting(authority))
        foreigner = Access(tls_ca=ca, tls_cert=str(foreign.cert), tls_key=str(foreign.key))
        assert denied in refusal(proxy.url, foreigner)
        access = Access(tls_ca=ca, tls_cert=str(own.cert), tls_key=str(own.key))
        assert KServe(proxy.url, access=access).metadata()["name"] == "fake"


def test_tls_and_plain_http_that_meet_are_told_apart(server: FakeServer, authority: Authority) -> None:
    told = refusal(server.url.replace("http", "https"), Access(), 0.5)  # it waits for the end of an HTTP head
    assert "the TLS handshake took too long; does this port speak TLS" in told
    with TlsProxy(server.port, authority.server()) as proxy:
        assert "with TLS it is https://" in refusal(proxy.url.replace("https", "http"), Access())


def test_one_that_answers_plain_text_to_a_handshake_or_tls_to_plain_http_is_told_apart() -> None:
    with Blurting(b"HTTP/1.1 400 Bad Request\r\n\r\n") as plain:
        told = refusal(f"https://127.0.0.1:{plain.port}", Access())
        assert "the server does not speak TLS on this port; name its TLS port, or write http://" in told
    with Blurting(b"\x15\x03\x01\x00\x02\x02\x46") as tls:  # an alert: protocol_version
        told = refusal(f"http://127.0.0.1:{tls.port}", Access())
        assert f"the server speaks TLS on this port; write https://127.0.0.1:{tls.port}" in told


class Blurting:
    """Says one thing to whoever sends anything."""

    def __init__(self, words: bytes) -> None:
        self._words, self._listener = words, socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._answer, daemon=True).start()
        return self

    def _answer(self) -> None:
        connection, _ = self._listener.accept()
        with contextlib.suppress(OSError), connection:  # whoever does not like the words hangs up
            connection.recv(2**16)
            connection.sendall(self._words)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(2**16)

    def __exit__(self, *why: object) -> None:
        self._listener.close()
