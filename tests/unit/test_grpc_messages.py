"""gRPC requests against Triton's own client, and what an answer or a failure is judged to be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import tritonclient.grpc as tritons
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc._utils import _get_inference_request
from tritonclient.utils import triton_to_np_dtype

from brim.errors import UsageError
from brim.records import Status, Tensor
from loadtest import grpc_requests, payload, request_bytes
from loadtest.request_bytes import Input, Part
from loadtest.senders import grpc_answers
from loadtest.senders.grpc_answers import GrpcJudge

Y = Tensor(name="y", dtype="FP32", shape=(1, 4))
ROW = np.arange(4, dtype="<f4").tobytes()
GOOD = grpc_requests.answer([("y", "FP32", (1, 4), ROW)])


def tritons_own(inputs: Sequence[tritons.InferInput], outputs: Sequence[str]) -> messages.ModelInferRequest:
    return _get_inference_request(
        model_name="m", inputs=inputs, model_version="3", request_id="",
        outputs=[tritons.InferRequestedOutput(name) for name in outputs], sequence_id=0, sequence_start=False,
        sequence_end=False, priority=0, timeout=None, parameters=None,
    )  # fmt: skip


def test_the_request_message_is_what_tritons_own_client_makes() -> None:
    rng, ours, theirs = np.random.default_rng(1), [], []
    for dtype in sorted(request_bytes.NUMPY):
        tensor = Tensor(name=f"input_{dtype}", dtype=dtype, shape=(2, 3))
        array = payload.random_array(rng, dtype, (2, 3), dtype)
        ours.append(Input(tensor=tensor, data=request_bytes.wire(array, dtype)))
        theirs.append(tritons.InferInput(tensor.name, [2, 3], dtype))
        theirs[-1].set_data_from_numpy(array if dtype == "BYTES" else array.view(triton_to_np_dtype(dtype)))
    sent = messages.ModelInferRequest.FromString(grpc_requests.infer_message("m", "3", ours, ["y", "z"]))
    assert sent == tritons_own(theirs, ["y", "z"])


def test_inputs_in_shared_memory_are_named_as_tritons_own_client_names_them() -> None:
    ours = [
        Input(tensor=Tensor(name=name, dtype="FP32", shape=(2, 3)), data=Part(region="r", offset=at, byte_size=24))
        for name, at in (("a", 0), ("b", 64))
    ]
    theirs = [tritons.InferInput(name, [2, 3], "FP32") for name in ("a", "b")]
    theirs[0].set_shared_memory("r", 24)
    theirs[1].set_shared_memory("r", 24, offset=64)
    sent = messages.ModelInferRequest.FromString(grpc_requests.infer_message("m", "3", ours, ["y"]))
    assert sent == tritons_own(theirs, ["y"])


def test_a_request_above_grpcs_message_limit_is_refused_before_it_is_made() -> None:
    grpc_requests.check_size("m", 2**31 - 1)
    with pytest.raises(UsageError, match="gRPC's message limit of 2147483647 bytes"):
        grpc_requests.check_size("m", 2**31)


def test_a_good_answer_is_good_the_first_time_and_with_other_values() -> None:
    judge = GrpcJudge([Y])
    other = grpc_requests.answer([("y", "FP32", (1, 4), ROW[::-1])])
    assert [judge.verdict(a) for a in (GOOD, GOOD, other, GOOD)] == [(Status.OK, "")] * 4


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (grpc_requests.answer([]), "output y is missing"),
        (grpc_requests.answer([("z", "FP32", (1, 4), ROW)]), "output y is missing"),
        (grpc_requests.answer([("y", "FP64", (1, 4), ROW)]), "output y is FP64, not FP32"),
        (grpc_requests.answer([("y", "FP32", (4, 1), ROW)]), r"output y has shape [4, 1], not [1, 4]"),
        (grpc_requests.answer([("y", "FP32", (1, 4), ROW[:8])]), "output y has 8 bytes, its shape needs 16"),
        (grpc_requests.answer([("y", "FP32", (1, 4), b"")]), "output y has 0 bytes, its shape needs 16"),
        (grpc_requests.answer([("y", "FP32", (1, 4), ROW), ("z", "FP32", (1,), ROW[:4])]), "z was not asked for"),
        (GOOD[:-1], "no ModelInferResponse"),
        (b"\xff" * len(GOOD), "no ModelInferResponse"),
        (b"", "output y is missing"),
    ],
)
def test_an_answer_unlike_the_promise_is_a_protocol_failure(answer: bytes, why: str) -> None:
    judge = GrpcJudge([Y])
    for _ in range(2):  # as the first answer, and after a good one
        status, text = judge.verdict(answer)
        assert status is Status.FAILED
        assert text.startswith("protocol: ") and why in text
        judge.verdict(GOOD)


def test_a_secret_is_gone_from_what_an_answer_names_wherever_it_would_be_cut() -> None:
    secret = "s3cret" * 50
    judge = GrpcJudge([Y], lambda words: words.replace(secret, "[redacted]"))
    answer = grpc_requests.answer([("y", "FP32", (1, 4), ROW), (secret, "FP32", (1,), ROW[:4])])
    assert judge.verdict(answer) == (Status.FAILED, "protocol: output [redacted] was not asked for")


@given(st.binary(min_size=8, max_size=8), st.binary(min_size=4, max_size=4), st.integers(0, 200), st.integers(0, 255))
def test_between_several_outputs_no_byte_of_the_frame_can_change_unseen(a: bytes, b: bytes, at: int, new: int) -> None:
    """Whatever one byte becomes, the fast path says what a full reading says."""
    outputs = [Tensor(name="a", dtype="INT32", shape=(2,)), Tensor(name="b", dtype="FP32", shape=(-1,))]
    answer = grpc_requests.answer([("a", "INT32", (2,), a), ("b", "FP32", (1,), b)])
    changed = bytearray(answer)
    changed[at % len(answer)] = new
    practised, fresh = GrpcJudge(outputs), GrpcJudge(outputs)
    assert practised.verdict(answer) == (Status.OK, "")
    assert practised.verdict(bytes(changed)) == fresh.verdict(bytes(changed))


@pytest.mark.parametrize(
    ("code", "details", "status", "said"),
    [
        ("UNAVAILABLE", "[request id: <id_unknown>] Exceeds maximum queue size", Status.REJECTED, "maximum queue"),
        ("UNAVAILABLE", "Request timeout expired", Status.REJECTED, "UNAVAILABLE: Request timeout expired"),
        ("UNAVAILABLE", "failed to connect to all addresses; last error: x", Status.FAILED, "failed to connect"),
        ("UNAVAILABLE", "failed to connect to all addresses; last error: UNKNOWN: 127.0.0.1:1: Connection timed out",
         Status.FAILED, "Connection timed out"),
        ("UNAVAILABLE", "Socket closed", Status.FAILED, "UNAVAILABLE: Socket closed"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", Status.TIMED_OUT, "no answer within 2 s"),
        ("RESOURCE_EXHAUSTED", "Received message larger than max", Status.FAILED, "larger than max"),
        ("INVALID_ARGUMENT", "a\x1b[31m\nb", Status.FAILED, "INVALID_ARGUMENT: a [31m b"),
        ("UNAUTHENTICATED", "bad token s3cret", Status.FAILED, "bad token [redacted]"),
    ],
)  # fmt: skip
def test_a_failed_call_counts_as_what_its_code_and_its_words_say(
    code: str, details: str, status: Status, said: str
) -> None:
    found, text = grpc_answers.failure(code, details, 2.0, lambda words: words.replace("s3cret", "[redacted]"))
    assert found is status
    assert said in text
