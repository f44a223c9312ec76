"""The Locust sender inside TLS and with secret headers: real sockets, child processes, a proxy that ends TLS."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brim import layout
from brim.errors import NotReady, UsageError
from brim.kserve import KServe
from brim.records import Access, LoadPoint, Sender, Tensor
from loadtest import payload, target
from loadtest.driver import LoadResult, LoadSpec
from loadtest.sender_driver import SenderDriver
from tests.canary import CANARY, assert_nowhere, kept, seen_by_others, token
from tests.fakes import FakeServer
from tests.tls import OPENSSL, Authority, TlsProxy

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(OPENSSL is None, reason="no openssl program here to make certificates with"),
]

LARGE = Tensor(name="x", dtype="FP32", shape=(50_000,))  # 200 kB: a dozen TLS records each way
WIDE = Tensor(name="y", dtype="FP32", shape=(50_000,))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(service_s=0.002, slots=8) as started:
        yield started


def trusting(authority: Authority, **headers: Path) -> Access:
    return Access(tls_ca=str(authority.own.cert), headers={name: str(file) for name, file in headers.items()})


def spec_of(server: FakeServer, url: str, access: Access, run: Path, **changed: Any) -> LoadSpec:
    """Half a second of load by four users, unless changed."""
    described = replace(target.describe(server.url, server.model, allowed={}, shapes={}), url=url, access=access)
    folder = payload.prepare(described, run / "payload", items_per_request=1, input_data=None, seed=1)
    usual: dict[str, Any] = {
        "url": url,
        "model": server.model,
        "version": "",
        "point": LoadPoint(concurrency=4),
        "payload": str(folder),
        "folder": str(run / "raw"),
        "rows": str(run / "requests"),
        "first_worker": 0,
        "seconds": 0.5,
        "timeout_s": 5.0,
        "drain_s": 2.0,
        "samples": 4,
        "access": access,
    }
    return LoadSpec(**{**usual, **changed})


def loaded(spec: LoadSpec) -> LoadResult:
    return SenderDriver().start(spec, Path(spec.folder)).finish()


def test_a_load_of_many_tls_records_is_counted_as_the_server_saw_it(authority: Authority, tmp_path: Path) -> None:
    with (
        FakeServer(inputs=(LARGE,), outputs=(WIDE,)) as server,
        TlsProxy(server.port, authority.server()) as proxy,
    ):
        result = loaded(spec_of(server, proxy.url, trusting(authority), tmp_path))
        assert proxy.connections == 4  # one a user
    assert result.ended == "finished"
    assert result.sent == result.ok == len(server.log) > 10
    assert result.samples


def test_the_deadline_of_a_request_holds_inside_tls(authority: Authority, tmp_path: Path) -> None:
    with (
        FakeServer(fault=lambda ordinal: "slow" if ordinal % 2 else "never") as server,
        TlsProxy(server.port, authority.server()) as proxy,
    ):
        result = loaded(spec_of(server, proxy.url, trusting(authority), tmp_path, timeout_s=0.2))
    assert result.timed_out == result.sent > 4
    assert set(result.errors) == {"no answer within 0.2 s"}


def test_a_server_that_goes_away_inside_tls_is_lost(server: FakeServer, authority: Authority, tmp_path: Path) -> None:
    with TlsProxy(server.port, authority.server()) as proxy:
        spec = spec_of(server, proxy.url, trusting(authority), tmp_path, seconds=30.0)
        load = SenderDriver().start(spec, Path(spec.folder))
        deadline = time.monotonic() + 20
        while len(server.log) < 100:
            assert time.monotonic() < deadline, "no requests came"
            time.sleep(0.01)
    result = load.finish()
    assert result.ended == "server_lost"
    assert result.ok > 0


def test_a_certificate_that_is_not_to_be_trusted_sends_nothing(
    server: FakeServer, authority: Authority, tmp_path: Path
) -> None:
    with TlsProxy(server.port, authority.server("expired")) as proxy:
        spec = spec_of(server, proxy.url, trusting(authority), tmp_path)
        with pytest.raises(NotReady, match="the server's certificate has expired"):
            loaded(spec)
    assert server.log == []


def test_a_server_without_tls_is_told_from_one_with_it_before_the_load(
    server: FakeServer, authority: Authority, tmp_path: Path
) -> None:
    spec = spec_of(server, server.url.replace("http", "https"), trusting(authority), tmp_path, timeout_s=0.5)
    with pytest.raises(NotReady, match="does this port speak TLS|connecting and the TLS handshake took over 0.5 s"):
        loaded(spec)


def test_a_client_certificate_is_shown_where_the_server_asks_for_one(
    server: FakeServer, authority: Authority, tmp_path: Path
) -> None:
    own = authority.client()
    access = replace(trusting(authority), tls_cert=str(own.cert), tls_key=str(own.key))
    with TlsProxy(server.port, authority.server(), clients_of=authority) as proxy:
        assert KServe(proxy.url, access=access).model_ready(server.model)
        result = loaded(spec_of(server, proxy.url, access, tmp_path))
    assert result.sent == result.ok == len(server.log) > 100


def test_a_file_that_is_gone_is_a_refusal_of_the_sender_too(
    server: FakeServer, authority: Authority, tmp_path: Path
) -> None:
    access = trusting(authority, Authorization=tmp_path / "nothing")
    spec = spec_of(server, server.url, access, tmp_path)
    with pytest.raises(UsageError, match=r"--header Authorization=@.*nothing: cannot be read"):
        loaded(spec)


@pytest.mark.parametrize("sender", ["locust_http", "tritonclient_http"])
def test_a_secret_header_reaches_the_server_and_nothing_else(
    authority: Authority, tmp_path: Path, capfd: pytest.CaptureFixture[str], sender: Sender
) -> None:
    """The server repeats it in its errors and in what it says of itself; both are kept, without the secret."""
    access = trusting(authority, Authorization=token(tmp_path))
    with (
        FakeServer(fault=lambda ordinal: "echo" if ordinal % 2 else "", echo=True) as server,
        TlsProxy(server.port, authority.server()) as proxy,
    ):
        spec = spec_of(server, proxy.url, access, tmp_path, point=LoadPoint(concurrency=4, senders=2, sender=sender))
        load = SenderDriver().start(spec, Path(spec.folder))
        seen = seen_by_others(load.pids)
        result = load.finish()
        ask = KServe(proxy.url, access=access)
        said = ask.metadata()["version"]
        with pytest.raises(NotReady) as refused:
            ask.model_metadata("nowhere")
        given = proxy.headers("Authorization")
    assert set(given) == {f"Bearer {CANARY}"}
    questions = 2 + (2 if sender == "tritonclient_http" else 0)  # the first slot of each connects by asking
    assert len(given) == len(server.log) + questions
    assert result.errors == {"HTTP 500: who is [redacted]?": server.faults["echo"]}
    assert 0 < result.ok < result.sent
    assert said == "0[redacted]"
    assert "[redacted]" in str(refused.value)
    files = kept(tmp_path)
    assert len(files) > 20  # requests, rows, results, samples, logs
    assert_nowhere([*files, *seen, "".join(capfd.readouterr()).encode(), str(refused.value).encode()])


#: The front door with loads of a second or two, and with a lock of the test's own: a user may be measuring here.
FRONT_DOOR = """
import sys
from pathlib import Path
import loadtest.plan
from brim.cli import main
from experiments.measure import ledger
loadtest.plan.LOAD_LIMIT_SECONDS = 1.2
ledger.machine_lock = lambda: Path(sys.argv[1])
main(sys.argv[2:])
"""


def test_a_measurement_from_the_command_line_keeps_the_secret_too(authority: Authority, tmp_path: Path) -> None:
    """Control questions, loads, errors, records, logs and the answer, through TLS and compressed."""
    out, secret, plan = tmp_path / "out", token(tmp_path), tmp_path / "loads.toml"
    plan.write_text("window_seconds = 1\nwindow_batches = 10\n")
    with (
        FakeServer(service_s=0.005, fault=lambda n: "echo" if n % 500 == 0 else "", echo=True) as server,
        TlsProxy(server.port, authority.server()) as proxy,
    ):
        words = [
            *("loadtest", proxy.url, server.model, "--concurrency", "2", "--gzip", "--json", "-v"),
            *("--tls-ca", str(authority.own.cert), "--header", f"Authorization=@{secret}"),
            *("--loads", str(plan), "--out", str(out)),
        ]
        done = subprocess.run(
            [sys.executable, "-c", FRONT_DOOR, str(tmp_path / "lock"), *words],
            cwd=layout.CHECKOUT, capture_output=True, timeout=120,
        )  # fmt: skip
        assert done.returncode in (0, 4), done.stderr.decode()  # so short a load may be found unstable
        assert set(proxy.headers("Authorization")) == {f"Bearer {CANARY}"}
        assert len(proxy.headers("Authorization")) == len(proxy.heads)
        assert len(proxy.headers("Content-Encoding")) == len(server.log) > 100
    files = kept(out)
    assert b"[redacted]" in done.stderr and any(b"[redacted]" in text for text in files)
    assert_nowhere([*files, done.stdout, done.stderr])
