"""What becomes of a load when the sender itself has a bug, or its host is slow: real processes with a part replaced."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from brim.records import LoadPoint, Sender, Target, Tensor
from loadtest import payload
from loadtest.driver import LoadResult, LoadSpec
from loadtest.sender_driver import MODULES, SenderDriver
from tests.fake_grpc import GOOD, FakeGrpc
from tests.fakes import FakeServer

pytestmark = pytest.mark.contract

#: A sender's module, so far changed, as the driver is to start it: what to import, what to change, how to run.
LOCUST = ("from loadtest.senders import locust_run, locust_http as of", "locust_run.main(sys.argv[1:])")
GRPC = ("from loadtest.senders import asyncio_load, grpc_run as of", "asyncio_load.run(sys.argv[1:], of.GrpcWire)")
CLIENT = ("from loadtest.senders import tritonclient_http as of", "of.shell.run(sys.argv[1:], of.GreenletSender)")
SENDERS: dict[Sender, tuple[str, str]] = {"locust_http": LOCUST, "grpc_aio": GRPC, "tritonclient_http": CLIENT}
BUG = """
def bug(*_):
    raise RuntimeError("a bug of ours")
"""


def run_with(change: str, sender: Sender, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have the driver start this sender with `change` made to its module `of`."""
    imports, run = SENDERS[sender]
    (folder / "changed_sender.py").write_text(f"import sys\n{imports}\n{change}\nsys.exit({run})\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setitem(MODULES, sender, "changed_sender")


def loaded(url: str, sender: Sender, run: Path, **changed: Any) -> LoadResult:
    """A load of two users, of half a minute unless something ends it."""
    protocol: Any = url.partition(":")[0]
    tensors = (Tensor(name="x", dtype="FP32", shape=(4,)),), (Tensor(name="y", dtype="FP32", shape=(2,)),)
    if protocol == "grpc":
        tensors = (
            (Tensor(name="INPUT", dtype="FP32", shape=(16,)),),
            (Tensor(name="OUTPUT", dtype="FP32", shape=(16,)),),
        )
    described = Target(
        url=url, model="tiny", version="", inputs=tensors[0], outputs=tensors[1], max_batch=8, instances=1,
        server_name="", server_version="",
    )  # fmt: skip
    folder = payload.prepare(
        described, run / "payload", items_per_request=1, input_data=None, seed=1, protocol=protocol
    )
    usual: dict[str, Any] = {
        "url": url, "model": "tiny", "version": "", "payload": str(folder), "folder": str(run / "raw"),
        "point": LoadPoint(concurrency=2, protocol=protocol, sender=sender), "rows": str(run / "requests"),
        "first_worker": 0, "seconds": 30.0, "timeout_s": 5.0, "drain_s": 2.0, "samples": 4,
    }  # fmt: skip
    return SenderDriver().start(LoadSpec(**{**usual, **changed}), run / "raw").finish()


@pytest.mark.parametrize(
    ("sender", "part"),
    [
        ("locust_http", "of.KServeUser._offer_sample"),
        ("locust_http", "of.Job.enforce_deadline"),
        ("grpc_aio", "of.GrpcSlot.answer"),
        ("grpc_aio", "of.GrpcSlot.exchange"),
        ("grpc_aio", "of.shell.Share.flush"),
        ("tritonclient_http", "of.ClientPool.message"),
        ("tritonclient_http", "of.shell.Share.flush"),
    ],
)
def test_a_bug_ends_the_load_as_crashed_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sender: Sender, part: str
) -> None:
    run_with(f"{BUG}\n{part} = bug", sender, monkeypatch, tmp_path)
    began = time.monotonic()
    with FakeServer(service_s=0.01) as http, FakeGrpc([GOOD]) as grpc:
        result = loaded(grpc.url if sender == "grpc_aio" else http.url, sender, tmp_path)
    assert time.monotonic() - began < 20
    assert (result.ended, result.reason) == ("crashed", "sender: RuntimeError('a bug of ours')")
    assert "a bug of ours" in (tmp_path / "raw" / "sender-0.log").read_text()  # with the place in the code


def test_a_request_whose_deadline_ends_while_it_connects_is_never_sent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    late = """
class Late(of.Connection):
    made = 0

    def __init__(self, *given):
        Late.made += 1
        if Late.made > 1:
            of.gevent.sleep(0.4)
        super().__init__(*given)

of.Connection = Late
"""
    run_with(late, "locust_http", monkeypatch, tmp_path)
    with FakeServer(fault=lambda ordinal: "close" if ordinal == 0 else "never") as server:
        point = LoadPoint(concurrency=1)
        result = loaded(server.url, "locust_http", tmp_path, point=point, timeout_s=0.2, seconds=1.0)
    assert len(server.log) == 1
    assert (result.failed, result.timed_out) == (1, result.sent - 1)
    assert result.errors["no answer within 0.2 s"] == result.timed_out >= 2
    assert result.cancelled == 0


def test_a_client_that_fails_over_an_answer_is_not_called_a_broken_connection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_with(f"{BUG}\nof.ClientPool.verdict = bug", "tritonclient_http", monkeypatch, tmp_path)
    with FakeServer(service_s=0.01) as server:
        result = loaded(server.url, "tritonclient_http", tmp_path, seconds=0.3)
    assert (result.ended, result.failed) == ("finished", result.sent)
    assert result.errors == {"sender: RuntimeError('a bug of ours')": result.sent}


def test_what_breaks_a_connection_is_told_as_that_by_tritonclient_too(tmp_path: Path) -> None:
    with FakeServer(fault=lambda ordinal: "close" if ordinal % 2 else "reset") as server:
        result = loaded(server.url, "tritonclient_http", tmp_path, seconds=0.3)
    assert result.failed == result.sent > 0
    assert all(text.startswith("connection: ") for text in result.errors), result.errors
