"""Records survive the disk, and what is not a record is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from brim import codec
from brim.errors import InvalidRecord, UsageError
from brim.records import (
    Check,
    CrossCheck,
    KnownServer,
    Latency,
    LoadPoint,
    ModelCard,
    Saturation,
    ServingConfig,
    Tensor,
    Variant,
    Verdict,
    Window,
)

CARD = ModelCard(
    name="resnet50",
    source="timm/resnet50",
    inputs=(Tensor(name="input", dtype="FP32", shape=(3, 224, 224)),),
    outputs=(Tensor(name="output", dtype="FP32", shape=(1000,)),),
    precision="fp32",
    weights="seeded:0",
    artifacts={"model.onnx": "ab"},
    recipe="cd",
)


def saturation(**changes: object) -> Saturation:
    values: dict[str, object] = {
        "run": "r", "batch_id": "b", "variant": "v", "target": "http://127.0.0.1:8000", "backend": "python",
        "server_version": "2.51.0", "verdict": Verdict.SATURATED, "limited_by": "engine", "reasons": ("full",),
        "items_per_s": 18.4, "ci95": (18.1, 18.7), "ci_kind": "within_run", "at": LoadPoint(concurrency=8),
        "latency_ms": Latency(mean=1.0, p50=1.0, p90=1.0, p95=1.0, p99=1.0), "effective_batch": 4.0,
        "queue_ms": 1.0, "server_busy": 0.99, "client_cpu_cores": 0.1, "serving_efficiency": None,
        "cross_check": CrossCheck(generator="perf_analyzer", items_per_s=18.2, agrees=True),
        "checks": (Check(rule=1, name="accounting", state="held", value=0.0, bound=0.0),), "seconds_spent": 60.0,
    }  # fmt: skip
    return Saturation(**{**values, **changes})  # type: ignore[arg-type]  # a test builder


@pytest.mark.parametrize(
    "record",
    [
        CARD,
        saturation(),
        saturation(cross_check=None, ci95=None, latency_ms=None, items_per_s=None),
        Variant(model=CARD, config=ServingConfig(name="b4", preferred_batches=(2, 4))),
        Variant(
            model=KnownServer(
                kind="sleep", parameters={"service_ms": 20.0}, inputs=CARD.inputs, outputs=CARD.outputs, digest="x"
            ),
            config=ServingConfig(name="b8", max_batch=8),
        ),
    ],
)
def test_a_record_comes_back_equal_from_its_own_json(record: object) -> None:
    assert codec.from_json(type(record), codec.to_json(record), where="here") == record


def test_json_carries_the_schema_number_and_null_instead_of_nan() -> None:
    plain = json.loads(codec.to_json(saturation(items_per_s=float("nan"))))
    assert plain["schema"] == codec.SCHEMA
    assert plain["items_per_s"] is None


def test_a_newer_schema_is_refused_by_its_number() -> None:
    text = json.dumps({**json.loads(codec.to_json(CARD)), "schema": 99})
    with pytest.raises(InvalidRecord, match=r"card\.json: schema 99, this Brim reads up to 1"):
        codec.from_json(ModelCard, text, where="card.json")


def test_keys_that_an_older_file_lacks_get_the_defaults_of_the_record() -> None:
    plain = json.loads(codec.to_json(CARD))
    del plain["complexity"], plain["item"]
    assert codec.from_json(ModelCard, json.dumps(plain), where="x") == CARD


def test_an_unknown_key_is_refused_with_the_name_that_was_meant() -> None:
    with pytest.raises(UsageError, match=r"configs\.toml: \[b4\]: unknown key 'max_bach'; did you mean 'max_batch'\?"):
        codec.build(ServingConfig, {"name": "b4", "max_bach": 4}, where="configs.toml: [b4]")


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"name": "b4", "max_batch": "4"}, "max_batch: expected a whole number, found '4'"),
        ({"name": "b4", "max_batch": True}, "max_batch: expected a whole number, found True"),
        ({"name": "b4", "max_batch": 0}, "max_batch is 0, must be >= 1"),
        ({"name": "b4", "engine": "onnx"}, "'onnx' is not allowed; did you mean 'onnxruntime'?"),
        ({"name": "b4", "preferred_batches": 4}, "preferred_batches: expected a list, found 4"),
        ({"name": "b4", "preferred_batches": [8]}, "preferred batch [8] is not between 1 and max_batch 4"),
        ({"name": "a__b"}, "config 'a__b': use a-z"),
        ({}, "key 'name' is missing"),
    ],
)
def test_a_wrong_value_is_refused_with_place_and_reason(table: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError) as refused:
        codec.build(ServingConfig, table, where="t")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@dataclass(frozen=True, kw_only=True)
class Holder:
    numbers: Mapping[str, float]


def test_infinite_numbers_from_json_are_refused() -> None:
    with pytest.raises(UsageError, match=r"x: numbers\.a: expected a finite number"):
        codec.from_json(Holder, '{"numbers": {"a": Infinity}}', where="x")


def test_a_window_that_does_not_add_up_cannot_exist() -> None:
    with pytest.raises(InvalidRecord, match="8 in flight \\+ 100 sent, but 107 accounted for"):
        Window(
            generator="locust", point=LoadPoint(concurrency=8), start_ns=0, end_ns=10, items_ok=99, in_flight_start=8,
            sent=100, ok=99, rejected=0, timed_out=0, failed=0, cancelled=0, in_flight_end=8, latency_ms=None,
        )  # fmt: skip


def test_a_record_on_disk_with_a_foreign_key_is_an_invalid_record() -> None:
    with pytest.raises(InvalidRecord, match="run.json: unknown key 'surprise'"):
        codec.from_json(Tensor, '{"surprise": 1}', where="run.json")


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "x.toml does not exist; name a TOML file with --loads"), (b"a = ", "not TOML"), (b"\xff\xfe[", "not TOML")],
)
def test_a_toml_file_that_cannot_be_read_is_told_with_the_option_that_names_another(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    if content is not None:
        (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(UsageError, match=told):
        codec.read_toml(tmp_path / "x.toml", "--loads")
    with pytest.raises(UsageError, match="cannot be read .Is a directory.; name a TOML file with --loads"):
        codec.read_toml(tmp_path, "--loads")
