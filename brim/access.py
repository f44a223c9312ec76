"""How a target is reached beyond its URL: TLS contexts, request headers whose values lie in files, and their redaction.

Reads the files that an Access names, and writes nothing: a header's value lives in memory only, never in a file, a log
line, an argument or a message.
"""

from __future__ import annotations

import html
import json
import os
import re
import socket
import ssl
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from brim.errors import NotReady, UsageError
from brim.guard import Endpoint
from brim.records import Access

VALUE_MAX_BYTES = 8 * 2**10  # servers refuse a longer header
PEM_MAX_BYTES = 4 * 2**20  # a system's whole list of authorities has 0.2 MiB
REDACTED = "[redacted]"
SECRET_MIN = 4  # a shorter value is no secret, and would blot out half of a text
WORD_MIN = 8  # of a value of several words, each this long is held to be a secret on its own: `Bearer` has six letters
NAME_MAX = 64
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, 5.6.2
_VALUE = re.compile(r"[\x20-\x7e\t]+")  # gRPC takes no more than ASCII either
#: What Brim or the protocol itself says; a second one would contradict it.
OURS = frozenset({
    "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect", "host",
    "inference-header-content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding",
    "upgrade", "user-agent",
})  # fmt: skip

Redact = Callable[[str], str]
PLAIN = Access()  # no headers, the system's authorities


# ---------------------------------------------------------------------------- headers


def parse_headers(options: Iterable[str]) -> dict[str, str]:
    """`--header NAME=@FILE`, given any number of times, as name -> absolute path; UsageError never repeats a value."""
    headers: dict[str, str] = {}
    for option in options:
        name, file = parse_header(option)
        if name.lower() in {known.lower() for known in headers}:
            raise UsageError(f"--header {name} is given twice; give each header once")
        headers[name] = file
    return headers


def parse_header(text: str) -> tuple[str, str]:
    """The name and the absolute path of one `NAME=@FILE`."""
    name, _, file = text.partition("=@")
    if not file or not _TOKEN.fullmatch(name) or len(name) > NAME_MAX:
        raise UsageError(
            "--header takes NAME=@FILE, a header's name and the file that holds its value (what was given is not "
            "repeated here: a value on the command line can be read by others)"
        )
    if name.lower() in OURS or name.lower().startswith("grpc-"):
        raise UsageError(f"--header {name}: Brim and the protocol say that themselves; leave it out")
    return name, os.path.abspath(os.path.expanduser(file))


def read_headers(access: Access) -> tuple[tuple[str, str], ...]:
    """Names and values, each value without the white space around it; UsageError names the header and its file."""
    return tuple((name, _read_value(name, Path(file))) for name, file in access.headers.items())


def _read_value(name: str, file: Path) -> str:
    where = f"--header {name}=@{file}"
    value = _read(file, where, VALUE_MAX_BYTES).strip(b" \t\r\n").decode("latin-1")
    if not value:
        raise UsageError(f"{where}: the file is empty; write the header's value into it")
    if not _VALUE.fullmatch(value):
        raise UsageError(f"{where}: the value must be one line of printable ASCII; something else is in the file")
    return value


def http_header_lines(access: Access) -> bytes:
    """The headers as lines of an HTTP/1.1 head, each with its end; b"" for none."""
    return "".join(f"{name}: {value}\r\n" for name, value in read_headers(access)).encode("ascii")


def metadata(access: Access) -> tuple[tuple[str, str], ...]:
    """The headers as gRPC's metadata, names in small letters; UsageError for a name under which gRPC sends bytes."""
    for name in access.headers:
        if name.lower().endswith("-bin"):
            raise UsageError(f"--header {name}: over gRPC a name in -bin carries bytes, not text; use another name")
    return tuple((name.lower(), value) for name, value in read_headers(access))


def redactor(access: Access) -> Redact:
    """A function that takes the header values out of a foreign text, plain or as JSON, a URL, HTML or a repr has them.

    Call it before the text is shortened: half a secret would not be found.
    """
    secrets = set()
    for _, value in read_headers(access):
        words = {word for word in value.split() if len(word) >= WORD_MIN}
        for plain in {value, *words} if len(value) >= SECRET_MIN else ():
            secrets |= {plain, json.dumps(plain)[1:-1], quote(plain), quote(plain, safe=""), html.escape(plain)}
            shown = plain.encode("unicode_escape").decode()  # in a repr; ' is escaped there if " occurs, too
            secrets |= {shown, shown.replace("'", r"\'")}
    if not secrets:
        return lambda text: text
    longest_first = re.compile("|".join(re.escape(s) for s in sorted(secrets, key=len, reverse=True)))
    return lambda text: longest_first.sub(REDACTED, text)


# ---------------------------------------------------------------------------- TLS


@dataclass(frozen=True, slots=True, kw_only=True)
class Pem:
    """The bytes of the TLS files; None = not given (for `ca`: and the system has no one file of its authorities)."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None


def read_pem(access: Access) -> Pem:
    """The TLS files; UsageError names the option and the file that is missing, unreadable, not PEM or encrypted."""
    system = ssl.get_default_verify_paths().cafile
    cert, key = access.tls_cert, access.tls_key
    found = Pem(
        ca=_read_pem("--tls-ca", access.tls_ca, b"CERTIFICATE") if access.tls_ca else _system_authorities(system),
        cert=_read_pem("--tls-cert", cert, b"CERTIFICATE") if cert else None,
        key=_read_pem("--tls-key", key, b"PRIVATE KEY") if key else None,
    )
    if found.key is not None and b"ENCRYPTED" in found.key:
        raise UsageError(f"--tls-key {key} is encrypted; give a key without a passphrase, readable only by you")
    return found


def ssl_context(access: Access) -> ssl.SSLContext:
    """A context that verifies certificate and host name, TLS 1.2 or newer; UsageError if one of our files is unfit."""
    read_pem(access)
    try:
        context = ssl.create_default_context(cafile=access.tls_ca)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise UsageError(f"--tls-ca {access.tls_ca}: {_why(error)}; give the authority's certificate as PEM") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if access.tls_cert and access.tls_key:
        try:
            context.load_cert_chain(access.tls_cert, access.tls_key, password="")  # "": never ask the terminal
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--tls-cert {access.tls_cert} with --tls-key {access.tls_key}: {_why(error)}; give a certificate "
                f"and the key that belongs to it, both as PEM"
            ) from None
    return context


def open_tls(sock: socket.socket, context: ssl.SSLContext, endpoint: Endpoint) -> ssl.SSLSocket:
    """TLS over a connected socket, within the socket's timeout; NotReady says what failed, and closes it."""
    opened = context.wrap_socket(sock, server_hostname=endpoint.host, do_handshake_on_connect=False)
    try:
        opened.do_handshake()
    except BaseException as error:
        opened.close()
        if not isinstance(error, OSError):
            raise
        how = "took too long" if isinstance(error, TimeoutError) else "was cut off"
        cut = f"{endpoint.url}: the TLS handshake {how}; does this port speak TLS, and without a client certificate?"
        raise NotReady(tls_failure(error, endpoint) or cut) from None
    return opened


def tls_failure(error: Exception, endpoint: Endpoint) -> str | None:
    """What OpenSSL says of the connection to `endpoint`, and the next step, in one line; None if it says nothing.

    In TLS 1.3 the server judges our certificate after the handshake, so the first read fails.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{endpoint.url}: {_distrust(error, endpoint.host)}"
    reason = (getattr(error, "reason", None) or "") if isinstance(error, ssl.SSLError) else ""
    for words, told in _TLS_REASONS.items():
        if any(word in reason for word in words):
            return f"{endpoint.url}: {told}"
    named = reason and not isinstance(error, ssl.SSLEOFError)
    return f"{endpoint.url}: TLS failed ({_why(error)}); see the server's log" if named else None


#: Parts of OpenSSL's words -> ours.
_TLS_REASONS = {
    ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL"): (
        "the server does not speak TLS on this port; name its TLS port, or write http:// or grpc://"
    ),
    ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE"): (
        "the server wants a client certificate, or shares no cipher with us; give --tls-cert FILE --tls-key FILE"
    ),
    ("ALERT_UNKNOWN_CA", "ALERT_BAD_CERTIFICATE", "ALERT_CERTIFICATE", "ALERT_UNSUPPORTED_CERT", "ACCESS_DENIED"): (
        "the server refused our client certificate; give one that it trusts with --tls-cert FILE --tls-key FILE"
    ),
    ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL"): "the server speaks only TLS older than 1.2; upgrade it",
}


def _distrust(error: ssl.SSLCertVerificationError, host: str) -> str:
    """Why the server's certificate is not trusted, by OpenSSL's number (X509_V_ERR_*)."""
    told = {
        9: "the server's certificate is not valid yet; check the clocks",
        10: "the server's certificate has expired; renew it",
        18: "the server's certificate is self-signed; if it is the right one, trust it with --tls-ca FILE",
        62: f"the server's certificate is not for {host}; use the name that it is for",
        64: f"the server's certificate is not for {host}; use the name that it is for",
    }
    unknown = f"the authority of the server's certificate is unknown here ({error.verify_message}); name it with"
    return told.get(error.verify_code, f"{unknown} --tls-ca FILE")


def _why(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else (getattr(error, "strerror", None) or str(error))


def _system_authorities(file: str | None) -> bytes | None:
    return _read(Path(file), file, PEM_MAX_BYTES) if file else None


def _read_pem(option: str, file: str, kind: bytes) -> bytes:
    where = f"{option} {file}"
    data = _read(Path(file), where, PEM_MAX_BYTES)
    if b"-----BEGIN " not in data or kind + b"-----" not in data:
        raise UsageError(
            f"{where}: no PEM {kind.decode().lower()} in it; give a file with -----BEGIN … {kind.decode()}-----"
        )
    return data


def _read(file: Path, where: str, most: int) -> bytes:
    """A regular file of at most `most` bytes: a pipe can be read only once, and each sender process reads it again."""
    try:
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise UsageError(f"{where}: not a regular file; every sender process reads it anew")
            data = stream.read(most + 1)
    except OSError as error:
        raise UsageError(f"{where}: cannot be read ({error.strerror or error}); check path and rights") from None
    if len(data) > most:
        raise UsageError(f"{where}: more than {most} bytes; is it the right file?")
    return data
