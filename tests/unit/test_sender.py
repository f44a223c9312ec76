"""The sender's parts that need no load generator: the judge of answers, the tally, the shared job."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brim import guard
from brim.errors import NoResource
from brim.records import Access, Status, TargetLimit, Tensor
from loadtest.prepared import Member, Payload
from loadtest.senders import answers
from loadtest.senders.answers import TEXT_MAX, Garbage, Judge, read_head
from loadtest.senders.asyncio_load import Slot
from loadtest.senders.backoff import Backoff
from loadtest.senders.job import RAMP_S, Job, most_per_s, ramp_s, share, with_headers
from loadtest.senders.tally import OTHER_TEXTS, TEXTS_MAX, RowFile, Samples, Texts

OUTPUT = Tensor(name="y", dtype="FP32", shape=(2, -1))


def answer(outputs: Any, data: bytes, *, status: int = 200, headers: str = "") -> bytes:
    text = json.dumps({"outputs": outputs}).encode()
    head = f"HTTP/1.1 {status} OK\r\ninference-header-content-length: {len(text)}\r\n{headers}"
    return f"{head}Content-Length: {len(text) + len(data)}\r\n\r\n".encode() + text + data


def entry(**changed: Any) -> dict[str, Any]:
    whole = {"name": "y", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}}
    return {**whole, **changed}


def judged(data: bytes, *outputs: Tensor) -> tuple[Status, str]:
    head = read_head(data)
    assert head is not None
    assert head.total == len(data)
    return Judge(outputs or (OUTPUT,)).verdict(head, data)


# ---------------------------------------------------------------------------- answers


def test_an_answer_of_the_promised_outputs_is_good() -> None:
    assert judged(answer([entry()], b"\0" * 24)) == (Status.OK, "")
    both = [entry(name="z", datatype="BYTES", shape=[1], parameters={"binary_data_size": 5}), entry()]
    assert judged(answer(both, b"\0" * 29), OUTPUT, Tensor(name="z", dtype="BYTES", shape=(-1,)))[0] == Status.OK


@pytest.mark.parametrize(
    ("outputs", "data", "told"),
    [
        ([], b"", "output y is missing"),
        ([entry(), entry(name="w")], b"\0" * 48, "output w was not asked for"),
        ([entry(datatype="FP16")], b"\0" * 24, "output y is FP16, not FP32"),
        ([entry(shape=[3, 3])], b"\0" * 36, r"shape \[3, 3\], not \[2, -1\]"),
        ([entry(shape=[2, 3, 1])], b"\0" * 24, "shape"),
        ([entry(shape=[2, -3])], b"\0" * 24, "shape"),
        ([entry(shape=[2, 4])], b"\0" * 24, "24 bytes, its shape needs 32"),
        ([entry()], b"\0" * 23, "23 bytes of outputs, 24 announced"),
        ([entry()], b"\0" * 25, "25 bytes of outputs, 24 announced"),
        ([entry(parameters={})], b"\0" * 24, "JSON head is broken"),
        ([entry(shape=None)], b"\0" * 24, "JSON head is broken"),
        ("nothing", b"", "JSON head is broken"),
    ],
)
def test_any_other_answer_of_status_200_is_a_broken_protocol(outputs: Any, data: bytes, told: str) -> None:
    status, text = judged(answer(outputs, data))
    assert status == Status.FAILED
    assert text.startswith("protocol: ")
    assert re.search(told, text)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(503, Status.REJECTED), (400, Status.FAILED), (404, Status.FAILED), (500, Status.FAILED), (302, Status.FAILED)],
)
def test_the_status_decides_and_the_servers_own_words_are_kept(status: int, expected: Status) -> None:
    body = b'{"error":"its own words"}'
    data = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    found, text = judged(data)
    assert found == expected
    assert text == ("HTTP 302: redirects are not followed" if status == 302 else f"HTTP {status}: its own words")


@pytest.mark.parametrize("before", [0, TEXT_MAX - 20, TEXT_MAX, 5000])
@pytest.mark.parametrize("as_json", [True, False])
def test_a_secret_is_gone_from_the_servers_words_wherever_they_are_cut(before: int, as_json: bool) -> None:
    words = "x" * before + " hunter2-hunter2"
    body = json.dumps({"error": words}).encode() if as_json else words.encode()
    data = b"HTTP/1.1 500 X\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    head = read_head(data)
    assert head is not None
    judge = Judge((OUTPUT,), lambda text: text.replace("hunter2-hunter2", "[redacted]"))
    status, text = judge.verdict(head, data)
    assert status == Status.FAILED
    assert "hunter" not in text
    assert "[redacted]" in text or before > 0


def test_an_answer_that_ends_its_connection_is_not_what_the_next_is_compared_with() -> None:
    """Who sends compares before it reads the head, and would leave the connection open."""
    data = answer([entry()], b"\0" * 24, headers="Connection: close\r\n")
    head, judge = read_head(data), Judge((OUTPUT,))
    assert head is not None and head.close
    assert judge.verdict(head, data) == (Status.OK, "")
    assert (judge.good_total, data.startswith(judge.good_prefix)) == (-1, False)


def test_headers_are_spliced_in_behind_the_request_line() -> None:
    request = b"POST /v2 HTTP/1.1\r\nHost: x\r\n\r\n\r\nbody"
    assert with_headers([request], b"") == [request]
    spliced = b"POST /v2 HTTP/1.1\r\nA: b\r\nC: d\r\nHost: x\r\n\r\n\r\nbody"
    assert with_headers([request, request], b"A: b\r\nC: d\r\n") == [spliced, spliced]


def test_a_status_200_that_holds_an_error_brings_its_words() -> None:
    body = b'{"error":"out of memory"}'
    status, text = judged(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    assert status == Status.FAILED
    assert "out of memory" in text


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"HTTP/2",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1e3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x" * (answers.HEAD_MAX_BYTES + 1),
    ],
)
def test_what_is_no_answer_is_garbage_and_never_a_length_to_wait_for(data: bytes) -> None:
    with pytest.raises(Garbage):
        read_head(data)


def test_a_head_is_incomplete_until_its_last_byte() -> None:
    whole = answer([entry()], b"")
    end = whole.index(b"\r\n\r\n") + 4
    assert [read_head(whole[:n]) for n in range(end)] == [None] * end
    assert read_head(whole[:end]) is not None


@given(st.binary(max_size=200))
def test_no_bytes_whatever_break_the_reader(data: bytes) -> None:
    for prefix in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"):
        try:
            head = read_head(prefix + data)
        except Garbage:
            continue
        if head is not None:
            assert 0 <= head.body_bytes <= answers.BODY_MAX_BYTES


@given(st.binary(max_size=100))
def test_no_body_whatever_is_taken_for_a_good_answer_by_accident(body: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: {len(body)}\r\nContent-Length: {len(body)}\r\n\r\n"
    assert judged(head.encode() + body)[0] == Status.FAILED


@given(st.text(st.sampled_from("a <\x00\x1b\r\n\t\x7f\x9b\u00e9\u200b\u202e\u2028\ud800"), max_size=400))
def test_foreign_texts_are_one_short_printable_line(text: str) -> None:
    cleaned = answers.clean(text)
    assert len(cleaned) <= 200
    assert cleaned.isprintable()


def test_escape_sequences_do_not_reach_the_terminal() -> None:
    assert answers.error_text(500, b'{"error":"\\u001b[31mred\\r\\nline"}') == "HTTP 500: [31mred line"


# ---------------------------------------------------------------------------- tally


def test_only_so_many_error_texts_are_told_apart() -> None:
    texts = Texts()
    for n in range(TEXTS_MAX + 30):
        texts.add(f"error {n}")
        texts.add("error 0")
    assert len(texts.counts) == TEXTS_MAX + 1
    assert (texts.counts["error 0"], texts.counts[OTHER_TEXTS]) == (1 + TEXTS_MAX + 30, 30)


@given(st.integers(1, 9), st.integers(1, 20), st.integers(1, 400), st.integers(1, 50))
def test_samples_spread_over_a_run_of_any_length(wanted: int, payloads: int, answered: int, gap: int) -> None:
    samples = Samples(wanted, payloads, 0, pace_ns=100)
    offered = 0
    for n in range(answered):
        done_ns = n * gap
        if done_ns >= samples.due_ns:
            offered += 1
            samples.offer(done_ns, n % payloads, 1, n.to_bytes(4, "big"))
    kept = [int.from_bytes(body, "big") for _, _, body in samples.kept]
    assert 1 <= len(kept) <= wanted
    assert kept == sorted(set(kept))
    assert all(payload == number % payloads for (payload, _, _), number in zip(samples.kept, kept, strict=True))


def test_samples_of_a_long_run_reach_its_end_and_every_payload() -> None:
    samples = Samples(16, 4, 0, pace_ns=100)
    for n in range(100_000):
        if n >= samples.due_ns:
            samples.offer(n, n % 4, 0, n.to_bytes(4, "big"))
    taken = [int.from_bytes(body, "big") for _, _, body in samples.kept]
    assert taken[0] < 1_000 and taken[-1] > 80_000
    assert {payload for payload, _, _ in samples.kept} == {0, 1, 2, 3}


def test_no_sample_is_wanted_none_is_looked_at() -> None:
    assert Samples(0, 4, 0).due_ns > time.monotonic_ns() * 1000


def test_a_full_disk_is_told_with_the_file_and_the_counts_stay_right(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "0.bin", 0, 1)

    class Full:
        fileno, close = file._stream.fileno, file._stream.close

        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    file._stream = Full()  # type: ignore[assignment]
    file.add(1, 1, 2, Status.OK)
    with pytest.raises(NoResource, match=r"0\.bin: no room left"):
        file.flush()
    assert file.counts[Status.OK] == 1
    file.close()


# ---------------------------------------------------------------------------- the job


@dataclass
class User:
    sent_ns: int
    overdue: bool = False
    cuts: int = 0

    def cut(self) -> None:
        self.cuts += 1


class NoRows:
    def add(self, intended_ns: int, sent_ns: int, done_ns: int, status: int) -> None:
        raise NoResource("requests/0.bin: no room left")


class Unkept:
    def add(self, intended_ns: int, sent_ns: int, done_ns: int, status: int) -> None:
        pass


def job(**changed: Any) -> Job:
    pool = Payload(
        url="http://127.0.0.1:8000",
        model="m",
        version="",
        items_per_request=1,
        source="random:0",
        inputs=(),
        outputs=(OUTPUT,),
        members=(Member(request="r", inputs=()),),
        request_bytes=1,
    )
    usual: dict[str, Any] = {
        "payload": pool,
        "requests": [b"r"],
        "allowed": {},
        "users": 4,
        "senders": 1,
        "timeout_s": 0.5,
        "samples": 0,
        "rows": NoRows(),
    }
    return Job(**{**usual, **changed})


def test_only_overdue_requests_are_cut_and_only_once() -> None:
    shared, now = job(), time.monotonic_ns()
    idle, fresh, late = User(0), User(now - 100_000_000), User(now - 600_000_000)
    shared.users += [idle, fresh, late]
    next_s = shared.enforce_deadline()
    shared.enforce_deadline()
    assert [(u.overdue, u.cuts) for u in (idle, fresh, late)] == [(False, 0), (False, 0), (True, 1)]
    assert 0.3 < next_s <= 0.4
    assert shared.in_flight == 2


def test_a_server_that_refuses_everybody_for_a_while_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 300_000_000)
    monkeypatch.setattr("loadtest.senders.job.time.monotonic_ns", lambda: next(clock))
    shared = job(users=2)
    for _ in range(4):
        shared.refused("refused")
    assert not shared.stopping
    shared.refused("refused")
    assert (shared.stopping, shared.ended, shared.reason) == (True, "server_lost", "refused")


def test_a_connection_in_between_starts_the_count_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 300_000_000)
    monkeypatch.setattr("loadtest.senders.job.time.monotonic_ns", lambda: next(clock))
    shared = job(users=2)
    for _ in range(20):
        shared.refused("refused")
        shared.refused("refused")
        shared.connected()
    assert not shared.stopping


def test_the_first_cause_of_an_end_is_kept() -> None:
    shared = job()
    shared.record(1, 1, 2, Status.OK, "")
    shared.stop("stopped")
    assert (shared.ended, shared.reason, shared.no_room) == ("crashed", "requests/0.bin: no room left", True)


def test_a_bug_ends_the_load_even_while_it_drains_and_keeps_no_secret(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "value").write_text("hunter2-hunter2")
    shared = job(access=Access(headers={"X-Key": str(tmp_path / "value")}))
    shared.stop("finished")
    with shared.watched():
        raise ValueError("hunter2-hunter2")
    assert (shared.stopping, shared.ended) == (True, "crashed")
    assert shared.reason == "sender: ValueError('[redacted]')"
    log = capsys.readouterr().err
    assert "test_sender.py" in log and "hunter2" not in log


def test_users_join_5_ms_apart_and_all_within_half_a_second() -> None:
    assert [ramp_s(position, 16) for position in (0, 1, 15)] == pytest.approx([0, 0.005, 0.075])
    assert ramp_s(4095, 4096) < RAMP_S == 0.5


def test_a_pause_doubles_with_each_broken_connection_and_ends_with_any_answer() -> None:
    backoff = Backoff(job())
    pauses = []
    for _ in range(8):
        backoff.broke()
        pauses.append(backoff.pause_s)
    assert pauses == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5]
    backoff.answered()
    assert backoff.pause_s == 0


def test_after_a_reconnection_any_answer_ends_the_pauses_and_a_timeout_does_not() -> None:
    class Scripted(Slot):
        async def exchange(self, payload: int) -> tuple[Status, str]:
            self.broken, status = script.pop(0)
            return status, ""

    slot = Scripted(job(rows=Unkept()))
    for after, pause_s in ((Status.REJECTED, 0), (Status.FAILED, 0), (Status.OK, 0), (Status.TIMED_OUT, 0.02)):
        script = [(True, Status.FAILED), (True, Status.FAILED), (False, after)]
        slot._backoff.answered()
        while script:
            asyncio.run(slot._one())
        assert slot._backoff.pause_s == pause_s


def test_refusals_far_apart_with_answers_between_never_add_up_to_a_lost_server(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 2_000_000_000)
    monkeypatch.setattr("loadtest.senders.job.time.monotonic_ns", lambda: next(clock))
    shared = job(users=2)
    refused, answered = Backoff(shared), Backoff(shared)
    for _ in range(20):
        refused.broke("refused")
        answered.answered()  # of another user, whose connection still stands
    assert not shared.stopping
    for _ in range(3):
        refused.broke("refused")
    assert shared.ended == "server_lost"


def test_a_rate_cap_holds_only_beyond_loopback_and_is_shared_by_the_senders() -> None:
    far, near = guard.parse_url("http://203.0.113.7:8000"), guard.parse_url("http://127.0.0.1:8000")
    allowed = {h: TargetLimit(host=h, max_rate_per_s=50.0) for h in ("203.0.113.7", "127.0.0.1")}
    assert most_per_s(far, allowed, 1) == 50.0
    assert most_per_s(far, allowed, 2) == 25.0
    assert most_per_s(near, allowed, 1) == 0
    assert most_per_s(far, {"203.0.113.7": TargetLimit(host="203.0.113.7")}, 1) == 0


def test_turns_are_handed_out_at_the_capped_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.senders.job.most_per_s", lambda *_: 1e7)
    shared = job()
    monkeypatch.setattr("loadtest.senders.job.time.monotonic_ns", lambda: 1_000)
    assert [round(shared.turn_s() * 1e9) for _ in range(4)] == [0, 100, 200, 300]
    monkeypatch.setattr("loadtest.senders.job.time.monotonic_ns", lambda: 5_000)
    assert [round(shared.turn_s() * 1e9) for _ in range(2)] == [0, 100]  # what was not used is not saved up


@given(st.integers(0, 1000), st.integers(1, 16))
def test_shares_add_up_and_differ_by_at_most_one(whole: int, senders: int) -> None:
    shares = [share(whole, senders, n) for n in range(senders)]
    assert sum(shares) == whole
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)
