"""Certificates of a small authority of our own, and a proxy that ends TLS in front of a server on this machine.

The authority signs with the `openssl` program, because the environment has nothing else that makes certificates.
"""

from __future__ import annotations

import contextlib
import re
import select
import shutil
import socket
import ssl
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

TIMEOUT_S = 60.0  # of whatever waits in here: longer than any test
OPENSSL = shutil.which("openssl")

Kind = Literal["good", "expired", "other_host", "name_only", "self_signed"]
_CONFIG = """
[req]
distinguished_name = name
prompt = no
[name]
CN = {name}
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = {san}
subjectKeyIdentifier = hash
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    cert: Path
    key: Path


class Authority:
    """Signs certificates into a folder; an openssl that fails raises CalledProcessError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.own = self._make("authority", "authority", san="")

    def server(self, kind: Kind = "good") -> Certificate:
        """A server's certificate for 127.0.0.1 and localhost, good or bad in one way."""
        names = {"other_host": "DNS:elsewhere.example", "name_only": "DNS:localhost"}
        san = names.get(kind, "IP:127.0.0.1, DNS:localhost")
        return self._make(f"server-{kind}", "server", san, signed=kind != "self_signed", expired=kind == "expired")

    def client(self) -> Certificate:
        return self._make("client", "client", san="", signed=True)

    def _make(self, name: str, section: str, san: str, *, signed: bool = False, expired: bool = False) -> Certificate:
        made = Certificate(cert=self.folder / f"{name}.pem", key=self.folder / f"{name}.key")
        config = self.folder / f"{name}.cnf"
        config.write_text(_CONFIG.format(name=name, san=san or "DNS:unused.example"))
        request = self.folder / f"{name}.csr"
        self._run("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", made.key)
        self._run("req", "-new", "-key", made.key, "-config", config, "-out", request)
        sign: list[str | Path] = ["-signkey", made.key]
        if signed:
            sign = ["-CA", self.own.cert, "-CAkey", self.own.key, "-CAcreateserial"]
        self._run(
            "x509", "-req", "-in", request, *sign, "-days", "-1" if expired else "30",  # -1: it ended yesterday
            "-extfile", config,
            "-extensions", section, "-out", made.cert,
        )  # fmt: skip
        return made

    def _run(self, *words: str | Path) -> None:
        assert OPENSSL is not None  # whoever asks for an authority has looked
        subprocess.run([OPENSSL, *words], cwd=self.folder, check=True, capture_output=True, timeout=30)


class TlsProxy:
    """Ends TLS on 127.0.0.1 and hands the bytes on, a thread for each connection; as a context manager.

    `heads` keeps the head of every HTTP request that came through: what the far side of the wire has seen.
    """

    def __init__(self, backend_port: int, certificate: Certificate, *, clients_of: Authority | None = None) -> None:
        self._backend_port = backend_port
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # to be changed before the proxy is entered
        self.context.load_cert_chain(certificate.cert, certificate.key)
        if clients_of is not None:
            self.context.verify_mode = ssl.CERT_REQUIRED
            self.context.load_verify_locations(clients_of.own.cert)
        self.heads: list[str] = []
        self.connections = 0
        self.forwarded = 0  # bytes handed on to the server, out of TLS
        self._open: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def headers(self, name: str) -> list[str]:
        """The values of one header, a request each."""
        found = [re.search(rf"^{re.escape(name)}: *(.*?)\r$", head, re.M | re.I) for head in self.heads]
        return [match[1] for match in found if match]

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="tls proxy", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for opened in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                accepted, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(accepted,), daemon=True).start()

    def _serve(self, accepted: socket.socket) -> None:
        accepted.settimeout(TIMEOUT_S)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with (
            contextlib.suppress(OSError),
            self.context.wrap_socket(accepted, server_side=True) as front,
            socket.create_connection(("127.0.0.1", self._backend_port), TIMEOUT_S) as back,
        ):
            back.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open |= {front, back}
            while self._passed_on(front, back):
                pass
            self._open -= {front, back}

    def _passed_on(self, front: ssl.SSLSocket, back: socket.socket) -> bool:
        """Hand on what there is in either direction; False when one side has ended."""
        if front.pending() or front in select.select([front, back], [], [], TIMEOUT_S)[0]:
            data = front.recv(2**16)
            if re.match(rb"(GET|POST) /", data):
                self.heads.append(data.partition(b"\r\n\r\n")[0].decode("latin-1") + "\r\n")
            back.sendall(data)
            self.forwarded += len(data)
        else:
            data = back.recv(2**16)
            front.sendall(data)
        return bool(data)
