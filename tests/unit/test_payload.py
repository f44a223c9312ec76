"""What is sent: distinct seeded data, or the user's own, checked against the model before anything is written."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as messages

from brim.errors import UsageError
from brim.records import Target, Tensor
from loadtest import payload, prepared, request_bytes

COMPRESSIONS: tuple[payload.Compression, ...] = ("none", "gzip")


def target(*inputs: Tensor, max_batch: int = 8) -> Target:
    return Target(
        url="http://127.0.0.1:8000",
        model="a model",
        version="2",
        inputs=inputs,
        outputs=(Tensor(name="y", dtype="FP32", shape=(2,)), Tensor(name="z", dtype="BYTES", shape=(-1,))),
        max_batch=max_batch,
        instances=1,
        server_name="",
        server_version="",
    )


def tensor(dtype: str = "FP32", *shape: int, name: str = "x") -> Tensor:
    return Tensor(name=name, dtype=dtype, shape=shape)


def prepare(folder: Path, found: Target, *, items: int = 1, data: Any = None, pool: int = 4) -> prepared.Payload:
    given = None if data is None else str(data)
    payload.prepare(found, folder, items_per_request=items, input_data=given, seed=7, pool=pool)
    return prepared.load(folder)


def json_file(folder: Path, *entries: Any) -> Path:
    file = folder / "data.json"
    file.write_text(json.dumps({"data": list(entries)}))
    return file


def test_a_request_is_whole_http_and_holds_the_very_arrays_that_were_kept(tmp_path: Path) -> None:
    two = target(tensor("FP32", 3, 2), tensor("INT64", 2, name="ids"))
    made = prepare(tmp_path, two, items=3)
    for number, member in enumerate(made.members):
        head, _, body = (tmp_path / member.request).read_bytes().partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = dict(line.split(": ") for line in lines[1:])
        assert lines[0] == "POST /v2/models/a%20model/versions/2/infer HTTP/1.1"
        assert (headers["Host"], int(headers["Content-Length"])) == ("127.0.0.1:8000", len(body))
        sent = request_bytes.read_tensors(body, int(headers["Inference-Header-Content-Length"]), "inputs")
        kept = payload.read_inputs(tmp_path, number)
        assert {name: a.shape for name, a in sent.items()} == {"x": (3, 3, 2), "ids": (3, 2)}
        assert all(np.array_equal(sent[name], kept[name]) for name in ("x", "ids"))


def test_the_payload_says_what_to_expect_back(tmp_path: Path) -> None:
    made = prepare(tmp_path, target(tensor("FP32", 3)), items=4)
    assert [t.shape for t in made.outputs] == [(4, 2), (4, -1)]
    assert [prepared.tensor_bytes(t.dtype, t.shape) for t in made.outputs] == [4 * 2 * 4, None]
    assert made.request_bytes == max((tmp_path / m.request).stat().st_size for m in made.members)


def test_a_model_that_does_not_batch_is_sent_no_batch_dimension(tmp_path: Path) -> None:
    made = prepare(tmp_path, target(tensor("FP32", 3), max_batch=0))
    assert made.inputs[0].shape == (3,)
    with pytest.raises(UsageError, match="does not batch"):
        prepare(tmp_path, target(tensor("FP32", 3), max_batch=0), items=2)


def test_a_payload_larger_than_max_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="payload larger than max_batch: 9 items .* max_batch is 8"):
        prepare(tmp_path / "none", target(tensor("FP32", 3)), items=9)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("dtype", sorted(request_bytes.NUMPY))
def test_random_data_of_every_dtype_is_seeded_distinct_and_as_long_as_the_protocol_says(
    tmp_path: Path, dtype: str
) -> None:
    first, again = (prepare(tmp_path / name, target(tensor(dtype, 40))) for name in ("one", "two"))
    requests = [[(tmp_path / name / m.request).read_bytes() for m in first.members] for name in ("one", "two")]
    assert requests[0] == requests[1]
    assert first == again
    assert len(set(requests[0])) == len(first.members) == 4
    sent = payload.read_inputs(tmp_path / "one", 0)["x"]
    wire = request_bytes.wire(sent, dtype)
    expected = prepared.tensor_bytes(dtype, (1, 40))
    assert expected is None or len(wire) == expected
    assert np.array_equal(request_bytes.unwire(wire, dtype, (1, 40)), sent)


@pytest.mark.parametrize("dtype", ["FP16", "FP32", "FP64", "BF16"])
def test_random_floats_fill_zero_to_one(dtype: str) -> None:
    drawn = payload.random_array(np.random.default_rng(1), dtype, (10_000,), "x")
    if dtype == "BF16":
        drawn = (drawn.astype(np.uint32) << 16).view(np.float32)
    assert 0 <= drawn.min() < 0.01 < 0.99 < drawn.max() < 1
    assert abs(drawn.astype(float).mean() - 0.5) < 0.02


def test_random_bytes_cover_uint8() -> None:
    assert set(payload.random_array(np.random.default_rng(1), "UINT8", (10_000,), "x")) == set(range(256))


def test_the_pool_of_large_items_shrinks_instead_of_filling_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "POOL_BYTES", 3 * 4000)
    assert len(prepare(tmp_path, target(tensor("FP32", 1000)), pool=16).members) == 3


def test_a_dtype_that_cannot_be_sent_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="dtype FP31 cannot be sent; did you mean 'FP3"):
        prepare(tmp_path, target(tensor("FP31", 2)))


def test_a_compressed_request_says_so_and_holds_the_same_body(tmp_path: Path) -> None:
    plain, packed = (
        payload.prepare(
            target(tensor("INT32", 500)), tmp_path / how, items_per_request=1, input_data=None, seed=7, pool=1,
            compression=how,
        )
        for how in COMPRESSIONS
    )  # fmt: skip
    requests = [(folder / "request-0.http").read_bytes() for folder in (plain, packed)]
    (head, _, body), (packed_head, _, packed_body) = (request.partition(b"\r\n\r\n") for request in requests)
    assert gzip.decompress(packed_body) == body
    assert packed_head == head.replace(b"Content-Length: %d" % len(body), b"Content-Encoding: gzip\r\n" +
                                       b"Content-Length: %d" % len(packed_body))  # fmt: skip
    assert prepared.load(packed).request_bytes == len(requests[1]) < len(requests[0])


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_grpc_request_is_a_message_with_the_very_arrays_that_were_kept(tmp_path: Path, compression: Any) -> None:
    two = target(tensor("FP32", 3, 2), tensor("BYTES", 200, name="words"))
    payload.prepare(
        two, tmp_path, items_per_request=3, input_data=None, seed=7, pool=2, protocol="grpc", compression=compression
    )
    made = prepared.load(tmp_path)
    for number, member in enumerate(made.members):
        message = messages.ModelInferRequest.FromString((tmp_path / member.request).read_bytes())
        assert (message.model_name, message.model_version) == ("a model", "2")
        assert [(i.name, i.datatype, list(i.shape)) for i in message.inputs] == [
            ("x", "FP32", [3, 3, 2]), ("words", "BYTES", [3, 200])
        ]  # fmt: skip
        assert [output.name for output in message.outputs] == ["y", "z"]
        kept = payload.read_inputs(tmp_path, number)
        for entry, data in zip(message.inputs, message.raw_input_contents, strict=True):
            assert data == request_bytes.wire(kept[entry.name], entry.datatype)
    sizes = [(tmp_path / member.request).stat().st_size for member in made.members]
    assert (made.request_bytes == max(sizes)) == (compression == "none")  # gRPC itself compresses what is sent


def test_a_request_over_grpcs_limit_is_refused_before_any_data_are_drawn(tmp_path: Path) -> None:
    large = target(tensor("FP32", 2**26), max_batch=16)
    with pytest.raises(UsageError, match="2147483648 bytes is over gRPC's message limit of 2147483647"):
        payload.prepare(large, tmp_path / "none", items_per_request=8, input_data=None, seed=7, protocol="grpc")
    assert not (tmp_path / "none").exists()


# ---------------------------------------------------------------------------- --input-data


def test_perf_analyzers_json_is_read_in_its_three_forms(tmp_path: Path) -> None:
    values = np.array([1.5, 2.5, -3.0], "<f4")
    b64 = base64.b64encode(values.tobytes()).decode()
    file = json_file(
        tmp_path,
        {"x": [1.5, 2.5, -3.0]},
        {"x": {"content": [1.5, 2.5, -3.0], "shape": [3]}},
        {"x": {"b64": b64}},
        {"x": {"content": {"b64": b64}, "shape": [3]}},
        {"x": [[1.5, 2.5, -3.0]]},
    )
    made = prepare(tmp_path / "out", target(tensor("FP32", 3)), data=file)
    assert len(made.members) == 5
    for number in range(5):
        assert np.array_equal(payload.read_inputs(tmp_path / "out", number)["x"], values[None])


def test_items_of_the_users_data_are_batched_in_order_and_wrap(tmp_path: Path) -> None:
    file = json_file(tmp_path, {"x": [0]}, {"x": [1]}, {"x": [2]})
    made = prepare(tmp_path / "out", target(tensor("INT32", 1)), items=2, data=file)
    batches = [payload.read_inputs(tmp_path / "out", n)["x"].ravel().tolist() for n in range(len(made.members))]
    assert batches == [[0, 1], [2, 0]]


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"y": [1, 2]}, "no input 'y'"),
        ({}, "input 'x' is missing"),
        ({"x": [1]}, "1 values, but shape .2. needs 2"),
        ({"x": {"content": [1, 2], "shape": [1, 2]}}, "the model takes"),
        ({"x": [1, "two"]}, "'two' is not a UINT8 value"),
        ({"x": [1, None]}, "None is not a UINT8 value"),
        ({"x": [1, 256]}, "does not fit UINT8"),
        ({"x": [1, 1.5]}, "does not fit UINT8"),
        ({"x": [1, -1]}, "does not fit UINT8"),
        ({"x": [1, 10**30]}, "UINT8"),
        ({"x": {"b64": "!"}}, "base64"),
        ({"x": {"b64": "QUJD"}}, "3 values"),
        ({"x": 1}, "expected a list"),
        ([{"x": [1, 2]}], "sequences"),
    ],
)
def test_json_that_does_not_fit_the_model_is_refused_with_its_place(tmp_path: Path, entry: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told) as refused:
        prepare(tmp_path / "out", target(tensor("UINT8", 2)), data=json_file(tmp_path, entry))
    assert "data[0]" in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"dat": []}', '{"data": []}', '{"data": 1}', "\xff"])
def test_a_file_that_holds_no_data_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "data.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"data\.json"):
        prepare(tmp_path / "out", target(tensor("UINT8", 2)), data=file)


def test_data_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        prepare(tmp_path / "out", target(tensor("UINT8", 2)), data=tmp_path / "nowhere")


def test_npy_files_are_items_or_stacks_of_items(tmp_path: Path) -> None:
    (tmp_path / "data" / "ids").mkdir(parents=True)
    np.save(tmp_path / "data" / "x-0.npy", np.full((2,), 1, np.float32))
    np.save(tmp_path / "data" / "x-1.npy", np.stack([np.full((2,), v, np.float32) for v in (2, 3)]))
    np.save(tmp_path / "data" / "ids" / "a.npy", np.arange(3, dtype=np.int64)[:, None])
    two = target(tensor("FP32", 2), tensor("INT64", 1, name="ids"))
    made = prepare(tmp_path / "out", two, data=tmp_path / "data")
    found = [payload.read_inputs(tmp_path / "out", n) for n in range(len(made.members))]
    assert [(f["x"].ravel().tolist(), f["ids"].item()) for f in found] == [([1, 1], 0), ([2, 2], 1), ([3, 3], 2)]


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros(2, np.float64), "dtype float64"),
        (np.zeros(3, np.float32), "shape .3."),
        (np.zeros((), np.float32), r"shape \[\]"),
        (np.array([{"a": 1}, 2], object), "read safely"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, array: np.ndarray, told: str) -> None:
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "x.npy", array, allow_pickle=True)
    with pytest.raises(UsageError, match=told):
        prepare(tmp_path / "out", target(tensor("FP32", 2)), data=tmp_path / "data")


def test_inputs_with_unequal_numbers_of_items_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    np.save(tmp_path / "ids.npy", np.zeros((2, 1), np.int64))
    with pytest.raises(UsageError, match="x 3, ids 2"):
        prepare(tmp_path / "out", target(tensor("FP32", 2), tensor("INT64", 1, name="ids")), data=tmp_path)


def test_raw_files_are_the_items_of_a_single_bytes_input(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "data" / name).write_bytes(name.encode() + b"\0\xff")
    made = prepare(tmp_path / "out", target(tensor("BYTES", 1)), data=tmp_path / "data")
    found = [payload.read_inputs(tmp_path / "out", n)["x"] for n in range(len(made.members))]
    assert [f.item() for f in found] == [b"a.jpg\0\xff", b"b.jpg\0\xff"]
    assert found[0].shape == (1, 1)
    with pytest.raises(UsageError, match="raw files suit only"):
        prepare(tmp_path / "out", target(tensor("FP32", 1)), data=tmp_path / "data")


def test_a_folder_without_files_holds_no_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match="holds no data"):
        prepare(tmp_path / "out", target(tensor("BYTES", 1)), data=tmp_path / "data")


@pytest.mark.parametrize("data", [b"\x05\x00\x00\x00abc", b"\x01\x00"])
def test_bytes_that_are_cut_off_do_not_become_a_tensor(data: bytes) -> None:
    with pytest.raises(ValueError, match="cut off"):
        request_bytes.unwire(data, "BYTES", (1,))
