"""Headers from files, what may become of their values, and the TLS files."""

from __future__ import annotations

import html
import json
import os
import shutil
import ssl
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brim import access
from brim.access import REDACTED, metadata, parse_header, parse_headers, read_headers, read_pem, redactor, ssl_context
from brim.errors import UsageError
from brim.records import Access
from tests.tls import OPENSSL, Authority

SECRET = "hunter2-hunter2"

needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="no openssl program here to make certificates with")


def header(folder: Path, content: bytes, name: str = "X-Key") -> Access:
    file = folder / "value"
    file.write_bytes(content)
    return Access(headers={name: str(file)})


def refused(asked: Access) -> str:
    """What a refusal of the headers says: one line, and never a value."""
    with pytest.raises(UsageError) as caught:
        read_headers(asked)
    told = str(caught.value)
    assert SECRET not in told
    assert "\n" not in told
    return told


# ---------------------------------------------------------------------------- --header


def test_a_header_option_names_a_file_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert parse_header("Authorization=@token") == ("Authorization", str(tmp_path / "token"))
    assert parse_header("X-Key=@~/key=@odd") == ("X-Key", "/home/somebody/key=@odd")
    assert parse_headers(["A=@/a", "B=@/b"]) == {"A": "/a", "B": "/b"}


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization={SECRET}",
        f"Authorization: {SECRET}",
        f"Authorization: Bearer {SECRET}=@x",
        SECRET,
        f"{SECRET}=",
        f"{SECRET}=@",
        f"=@{SECRET}",
        f"{SECRET}\r\nX: y=@file",
        "",
    ],
)
def test_a_header_given_in_any_other_way_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(UsageError, match="--header takes NAME=@FILE") as caught:
        parse_header(text)
    assert SECRET not in str(caught.value)


PROTOCOLS = [
    "Host", "content-length", "Transfer-Encoding", "CONNECTION", "Content-Encoding", "Inference-Header-Content-Length",
    "Accept-Encoding", "grpc-timeout", "TE",
]  # fmt: skip


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_the_protocol_says_itself_cannot_be_given(name: str) -> None:
    with pytest.raises(UsageError, match=f"--header {name}: Brim and the protocol say that"):
        parse_header(f"{name}=@file")


@pytest.mark.parametrize("name", [":authority", "a b", "naïve", "x" * 65, "a:b"])
def test_a_name_that_is_no_token_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="--header takes NAME=@FILE"):
        parse_header(f"{name}=@file")


def test_one_header_is_given_once_however_it_is_written() -> None:
    with pytest.raises(UsageError, match="--header x-key is given twice"):
        parse_headers(["X-Key=@a", "x-key=@b"])


# ---------------------------------------------------------------------------- values


@pytest.mark.parametrize("content", [b"a b\tc", b"a b\tc\n", b"a b\tc\r\n", b"  a b\tc \n\n"])
def test_a_value_is_what_the_file_holds_without_the_white_space_around_it(tmp_path: Path, content: bytes) -> None:
    asked = header(tmp_path, content)
    assert read_headers(asked) == (("X-Key", "a b\tc"),)
    assert access.http_header_lines(asked) == b"X-Key: a b\tc\r\n"
    assert access.http_header_lines(Access()) == b""


def test_over_grpc_names_are_in_small_letters_and_none_may_stand_for_bytes(tmp_path: Path) -> None:
    assert metadata(header(tmp_path, b"v")) == (("x-key", "v"),)
    for name in ("x-key-bin", "X-Key-Bin"):
        with pytest.raises(UsageError, match=f"--header {name}: over gRPC a name in -bin carries bytes"):
            metadata(header(tmp_path, b"v", name))
        assert read_headers(header(tmp_path, b"v", name)) == ((name, "v"),)  # over HTTP it is like any other


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the file is empty"),
        (b" \r\n", "the file is empty"),
        (f"{SECRET}\r\nX-Other: y".encode(), "one line of printable ASCII"),
        (f"{SECRET}\n{SECRET}".encode(), "one line of printable ASCII"),
        (f"{SECRET}\0".encode(), "one line of printable ASCII"),
        (f"{SECRET}\x7f".encode(), "one line of printable ASCII"),
        (f"{SECRET}é".encode(), "one line of printable ASCII"),
        (f"{SECRET}".encode("utf-16"), "one line of printable ASCII"),
        (SECRET.encode() * 1000, "more than 8192 bytes"),
    ],
)
def test_a_value_that_cannot_travel_is_refused_by_its_file(tmp_path: Path, content: bytes, told: str) -> None:
    asked = header(tmp_path, content)
    assert refused(asked).startswith(f"--header X-Key=@{tmp_path}/value: ")
    assert told in refused(asked)


def test_a_file_that_cannot_be_read_again_and_again_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # nobody writes: an open that waits would wait for ever
    for place, told in (
        (tmp_path / "missing", "No such file"),
        (tmp_path, "Is a directory"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
    ):
        assert told in refused(Access(headers={"X-Key": str(place)}))


def test_an_access_keeps_paths_and_never_what_they_hold(tmp_path: Path) -> None:
    asked = header(tmp_path, SECRET.encode())
    read_headers(asked)
    assert SECRET not in repr(asked)


# ---------------------------------------------------------------------------- redaction


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=4, max_size=40).map(str.strip))
def test_no_way_to_write_a_value_survives_redaction(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    if len(value) < access.SECRET_MIN:
        return
    redact = redactor(header(tmp_path_factory.mktemp("value"), value.encode()))
    shown = [
        repr(f"\0{value}\0{more}").split(r"\x00")[1] for more in ("", "'", "'\"")
    ]  # quotes are escaped if both occur
    for written in (value, json.dumps(value)[1:-1], quote(value), quote(value, safe=""), html.escape(value), *shown):
        assert redact(f"\0{written}\0") == f"\0{REDACTED}\0"


def test_the_token_alone_is_redacted_too_and_its_scheme_is_not(tmp_path: Path) -> None:
    redact = redactor(header(tmp_path, f"Bearer {SECRET}".encode()))
    assert redact(f"token {SECRET} is no Bearer token") == f"token {REDACTED} is no Bearer token"
    assert redact(f"'Bearer {SECRET}'") == f"'{REDACTED}'"


def test_without_headers_and_with_short_ones_texts_stay_as_they_are(tmp_path: Path) -> None:
    assert redactor(Access())("HTTP 500: 1") == "HTTP 500: 1"
    assert redactor(header(tmp_path, b"1"))("HTTP 500: 1") == "HTTP 500: 1"


# ---------------------------------------------------------------------------- TLS files


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@needs_openssl
def test_a_context_verifies_host_and_certificate_and_speaks_no_old_tls(authority: Authority) -> None:
    own = authority.client()
    asked = Access(tls_ca=str(authority.own.cert), tls_cert=str(own.cert), tls_key=str(own.key))
    context = ssl_context(asked)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert len(context.get_ca_certs()) == 1  # the one that was named, and none of the system's
    pem = read_pem(asked)
    assert (pem.ca, pem.cert, pem.key) == (
        authority.own.cert.read_bytes(), own.cert.read_bytes(), own.key.read_bytes(),
    )  # fmt: skip


@needs_openssl
def test_each_tls_file_that_is_unfit_is_named_with_its_option(authority: Authority, tmp_path: Path) -> None:
    own, other = authority.client(), authority.server()
    for name, content in {"empty": "", "words": "a key\n", "broken": _broken(own.cert)}.items():
        (tmp_path / name).write_text(content)
    encrypted = tmp_path / "encrypted"
    subprocess.run(
        [shutil.which("openssl") or "", "ec", "-in", own.key, "-aes256", "-passout", "pass:word", "-out", encrypted],
        check=True, capture_output=True,
    )  # fmt: skip
    cert, key, missing = str(own.cert), str(own.key), str(tmp_path / "missing")
    for asked, told in (
        (Access(tls_ca=missing), f"--tls-ca {missing}: cannot be read (No such file"),
        (Access(tls_ca=str(tmp_path)), f"--tls-ca {tmp_path}: cannot be read (Is a directory"),
        (Access(tls_ca="/dev/zero"), "--tls-ca /dev/zero: not a regular file"),
        (Access(tls_ca=str(tmp_path / "empty")), "empty: no PEM certificate in it"),
        (Access(tls_ca=key), f"--tls-ca {key}: no PEM certificate in it"),
        (Access(tls_ca=str(tmp_path / "broken")), "broken: "),
        (Access(tls_cert=missing, tls_key=key), f"--tls-cert {missing}: cannot be read"),
        (Access(tls_cert=cert, tls_key=missing), f"--tls-key {missing}: cannot be read"),
        (Access(tls_cert=cert, tls_key=str(tmp_path / "words")), "words: no PEM private key in it"),
        (Access(tls_cert=cert, tls_key=cert), f"--tls-key {cert}: no PEM private key in it"),
        (Access(tls_cert=cert, tls_key=str(encrypted)), f"--tls-key {encrypted} is encrypted"),
        (Access(tls_cert=cert, tls_key=str(other.key)), "key values mismatch"),
    ):
        with pytest.raises(UsageError) as caught:
            ssl_context(asked)
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)


def _broken(cert: Path) -> str:
    lines = cert.read_text().splitlines()
    return "\n".join([lines[0], lines[1][::-1], *lines[2:]])
