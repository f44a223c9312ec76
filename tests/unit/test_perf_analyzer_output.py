"""What perf_analyzer says, replayed: recorded output of 2.51 with figures counted by hand, and its known lies."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brim.records import LoadPoint, Status
from loadtest import perf_analyzer_output as output

DATA = Path(__file__).parent.parent / "data" / "perf_analyzer"
TRACE = (DATA / "trace.txt").read_bytes()


def test_the_recorded_trace_holds_16_requests_of_which_12_were_answered() -> None:
    trace = output.Trace()
    assert trace.feed(TRACE, 7) == [7] * 12
    assert sorted(trace.in_flight) == [12, 13, 14, 15]
    assert trace.first_sent_ns == 7


@given(st.lists(st.integers(0, len(TRACE)), max_size=40))
def test_where_the_pipe_cuts_the_trace_changes_nothing(cuts: list[int]) -> None:
    trace, answered, edges = output.Trace(), 0, [0, *sorted(cuts), len(TRACE)]
    for a, b in zip(edges, edges[1:], strict=False):
        answered += len(trace.feed(TRACE[a:b], a + 1))
    assert answered == 12
    assert sorted(trace.in_flight) == [12, 13, 14, 15]


def test_each_answer_is_paired_with_the_instant_at_which_its_own_request_was_sent() -> None:
    trace = output.Trace()
    trace.feed(b'inference request: {"id":"1","inputs":[\ninference request: {"id":"2","inputs":[\n', 10)
    trace.feed(b'inference request: {"id":"3","inputs":[\n', 20)
    assert trace.feed(b'inference response: {"id":"3","model_name":"m"\n', 50) == [20]
    assert trace.feed(b'inference inference response: request: {"id":"1","model_name":"m"\n', 60) == [10]
    assert trace.in_flight == {2: 10}


def test_an_answer_that_nobody_asked_for_is_not_counted() -> None:
    assert output.Trace().feed(b'inference response: {"id":"9","model_name":"m"\n', 1) == []


def test_a_grpc_trace_is_paired_by_number_though_answers_stand_between_a_request_and_its_number() -> None:
    trace = output.Trace("grpc")
    trace.feed(b"Sent request '0'\nSent request '1'\nSent request '", 10)
    assert trace.feed(b'model_name: "m"\nid: "1"\noutputs {\n  name: "id"\n}\n2\'\nSent requ', 50) == [10]
    assert trace.feed(b"est '3'\n", 60) == []
    assert trace.in_flight == {0: 10, 2: 10, 3: 60}


def test_a_grpc_answer_that_is_printed_before_its_request_counts_once() -> None:
    trace = output.Trace("grpc")
    assert trace.feed(b"Sent request '0'\nmodel_name: \"m\"\nid: \"1\"\nSent request '1'\n", 10) == [10]
    assert trace.in_flight == {0: 10}


def test_the_recorded_csv_gives_its_rate_at_concurrency_4_and_none_at_8() -> None:
    text = (DATA / "sleep.csv").read_text()
    assert output.csv_rate(text, LoadPoint(concurrency=4)) == 177.444
    assert output.csv_rate(text, LoadPoint(concurrency=8)) is None


def test_a_csv_of_an_open_loop_gives_the_row_of_its_rate() -> None:
    text = "Request Rate,Inferences/Second\n99.5,98.0\n100.25,100.5\n"
    point = LoadPoint(mode="open", rate_per_s=100.25, arrivals="poisson", outstanding=64)
    assert output.csv_rate(text, point) == 100.5
    assert output.csv_rate(text, LoadPoint(concurrency=100)) is None


@pytest.mark.parametrize(
    "text", ["", "\n", "Concurrency,Inferences/Second\n", "Concurrency,Inferences/Second\n4\n4,x\n", "\x00\ufffd"]
)
def test_a_csv_without_a_readable_row_gives_no_rate(text: str) -> None:
    assert output.csv_rate(text, LoadPoint(concurrency=4)) is None


def test_of_the_recorded_stderr_only_perf_analyzers_own_words_remain() -> None:
    stderr = (DATA / "batch_too_large.stderr").read_bytes()
    assert output.words(stderr) == [
        "Failed to retrieve results from inference request.",
        "inference request batch-size must be <= 8 for 'sleep'",
    ]
    assert output.failed_requests(stderr) == 1


def test_control_characters_and_foreign_bytes_do_not_reach_the_terminal() -> None:
    assert output.words(b"\x1b[31mbad\x1b[0m \x07bell \xff\xfe end\r\n") == ["bad bell \ufffd\ufffd end"]


def test_unanswered_requests_are_timed_out_then_failed_oldest_first_then_cancelled() -> None:
    rows = output.left_over([300, 100, 200, 0], failed=1, end_ns=400, timeout_ns=400)
    assert rows == [
        (0, 400, Status.TIMED_OUT),
        (100, 400, Status.FAILED),
        (200, 400, Status.CANCELLED),
        (300, 400, Status.CANCELLED),
    ]


@pytest.mark.parametrize(
    ("requests", "agrees"), [(1000, True), (985, True), (1015, True), (1030, False), (970, False), (0, False)]
)
def test_rows_and_summary_may_differ_by_two_percent(requests: int, agrees: bool) -> None:
    done_ns = [i * 10_000_000 for i in range(1, 2001)]  # 100 requests of 3 items a second for 20 s
    # the reported count and rate say that the stretch lasted 10 s, so 1000 rows belong to it
    odd = output.disagreement(done_ns, start_ns=0, requests=requests, items=3, in_flight=2, rate=requests * 3 / 10.0)
    assert (odd is None) == agrees


def test_one_round_of_answers_at_the_end_of_a_slow_stretch_is_no_disagreement() -> None:
    done_ns = [i * 1_000_000_000 for i in range(1, 11) for _ in range(4)]  # 4 at once each second
    # 40 in 9.95 s: the last four fall just out of it; of 45 in 10 s five are missing
    assert output.disagreement(done_ns, start_ns=0, requests=40, items=1, in_flight=4, rate=40 / 9.95) is None
    assert output.disagreement(done_ns, start_ns=0, requests=45, items=1, in_flight=4, rate=4.5) is not None


def test_a_summary_without_a_count_is_told() -> None:
    tail = (DATA / "summary.txt").read_bytes()
    assert output.reported_requests(tail) == 33
    assert output.reported_requests(TRACE) is None
    assert output.disagreement([1], start_ns=0, requests=None, items=1, in_flight=1, rate=1.0) is not None


@pytest.mark.parametrize(
    ("exit_code", "stopped", "killed", "rate", "answered", "said", "ended"),
    [
        (0, False, "", 10.0, 5, [], "finished"),
        (0, True, "", 10.0, 5, [], "finished"),  # the order to stop came when it was done
        (0, True, "", None, 5, ["Received exit signal."], "stopped"),
        (0, False, "", None, 5, [], "crashed"),  # exit 0 without a CSV
        (0, False, "", 10.0, 0, [], "crashed"),
        (2, False, "", None, 5, ["Failed to obtain stable measurement."], "crashed"),
        (-11, False, "", None, 5, [], "crashed"),
        (-9, False, "did not end within 9 s", None, 5, [], "crashed"),
        (99, False, "", None, 0, ["error: HTTP client failed: Couldn't connect to server"], "server_lost"),
        (99, True, "", None, 5, ["failed to parse: The document is empty. at 0"], "server_lost"),
    ],
)  # fmt: skip
def test_an_exit_code_alone_is_never_believed(
    exit_code: int, stopped: bool, killed: str, rate: float | None, answered: int, said: list[str], ended: str
) -> None:
    got, reason = output.outcome(
        exit_code=exit_code, stopped=stopped, killed=killed, rate=rate, answered=answered, said=said
    )
    assert got == ended
    assert bool(reason) == (ended in ("crashed", "server_lost"))
