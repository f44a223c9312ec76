"""What stands on the command line, checked: each wrong word gets one line that names it, and no secret is repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brim.errors import UsageError
from experiments.measure.options import Options, access_of, parse_concurrency, parse_shape, request_of


def options(**changes: Any) -> Options:
    values: dict[str, Any] = {
        "concurrency": None, "starts": 1, "senders": 1, "items_per_request": None, "protocol": None,
        "transport": "wire", "client": "brim", "gzip": False, "channels": 1, "shapes": (), "input_data": None,
        "model_version": "", "loads": None, "tls_ca": None, "tls_cert": None, "tls_key": None, "headers": (),
        "allow_remote": (), "project": None, "cross_check": None, "master": None, "expect_workers": None,
        "worker": None, "rate": None, "arrivals": None, "cv": None, "trace": None, "speed_up": None, "seconds": None,
        "seed": None, "outstanding": None, "slo_ms": None, "percentile": None, "slo_seconds": None,
        "model_free": False, "slo_only": False, "overload": False,
    }  # fmt: skip
    return Options(**{**values, **changes})


@pytest.mark.parametrize(
    ("text", "point", "ladder"),
    [(None, None, None), ("8", 8, None), ("1:64", None, (1, 64)), ("16:16", None, (16, 16))],
)
def test_one_number_is_a_point_and_two_are_the_bounds_of_the_ladder(
    text: str | None, point: int | None, ladder: tuple[int, int] | None
) -> None:
    assert parse_concurrency(text) == (point, ladder)


def test_bounds_that_cross_are_refused_with_the_right_order() -> None:
    with pytest.raises(UsageError, match=r"--concurrency 64:1: the ladder would begin above its end; write 1:64"):
        parse_concurrency("64:1")


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1e3", "1:", ":8", "1::2", "1:8:2", "a:b", " 8", "٣", "9999999", "1_0"]
)
def test_what_is_no_concurrency_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="write N for one point, or FROM:TO"):
        parse_concurrency(text)


@given(st.text(max_size=12))
def test_any_text_is_a_concurrency_or_a_usage_error(text: str) -> None:
    try:
        point, ladder = parse_concurrency(text)
    except UsageError:
        return
    assert (point is None) != (ladder is None)


def test_a_request_holds_what_was_asked_for() -> None:
    request = request_of(
        options(concurrency="2:32", transport="shared-memory", starts=3, senders=2, channels=4), batch_id="b"
    )
    assert (request.ladder, request.concurrency, request.transport) == ((2, 32), None, "shared_memory")
    assert (request.starts, request.senders, request.channels, request.compression) == (3, 2, 4, "none")
    assert request_of(options(gzip=True), batch_id="b").compression == "gzip"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"transport": "shared-memory", "client": "tritonclient"}, "--client tritonclient sends over the wire"),
        ({"transport": "cuda-shared-memory", "gzip": True}, "--gzip has nothing to compress"),
        ({"master": "127.0.0.1:5557"}, "--master and --expect-workers go together"),
        (
            {"master": "127.0.0.1:5557", "expect_workers": 2, "transport": "shared-memory"},
            "workers on other hosts share no memory",
        ),
        ({"expect_workers": 2}, "--master and --expect-workers go together"),
        ({"tls_cert": "client.pem"}, "certificate and its key go together"),
        ({"slo_ms": "50", "slo_only": True, "starts": 3}, "--starts is of the peak, .*: leave it or --slo-only out"),
        ({"slo_ms": "50", "slo_only": True, "concurrency": "8"}, "--concurrency is of the peak"),
        ({"slo_ms": "50", "slo_only": True, "cross_check": True}, "--cross-check is of the peak"),
        ({"slo_ms": "30000"}, "--slo-ms 30000: a request is cut off after 30000 ms; raise request_timeout_seconds"),
        ({"slo_ms": "31000", "rate": 1.0}, "--slo-ms 31000: a request is cut off"),
        ({"slo_ms": "50", "items_per_request": 4}, "--items-per-request is 1 .*: leave it or --slo-ms out"),
        ({"rate": 5.0, "slo_ms": "50", "slo_seconds": 9.0}, "--slo-seconds is of the search .*--rate out"),
        ({"trace": Path("x"), "slo_ms": "50", "slo_seconds": 9.0}, "--slo-seconds is of the search .*--trace out"),
        ({"rate": 5.0, "cross_check": True}, "--cross-check is of a closed loop"),
        ({"rate": 5.0, "concurrency": "8"}, "--concurrency is of a closed loop: leave it or --rate out"),
        ({"rate": 5.0, "arrivals": "constant", "seed": 1}, "--seed is of random arrivals"),
        ({"project": Path("nowhere.toml")}, "there is no such file"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        request_of(options(**changes), batch_id="b")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"slo_ms": "50", "starts": 3, "concurrency": "1:8", "slo_seconds": 9.0, "cross_check": True},
        {"slo_ms": "50", "slo_only": True, "cross_check": False, "percentile": 95.0, "senders": 2},
        {"rate": 5.0, "slo_ms": "50", "percentile": 95.0, "cross_check": False, "items_per_request": 4, "starts": 2},
        {"rate": 5.0, "arrivals": "poisson", "seed": 1, "outstanding": 9, "seconds": 5.0},
    ],
)
def test_options_that_all_have_an_effect_go_together(changes: dict[str, Any]) -> None:
    request = request_of(options(**changes), batch_id="b")
    assert request.cross_check is (changes.get("cross_check") is not False)
    assert (request.slo is None, request.open_loop is None) == ("slo_ms" not in changes, "rate" not in changes)


def test_larger_requests_of_the_loads_file_cost_the_rate_at_the_slo_and_not_the_peak(tmp_path: Path) -> None:
    """The search for the rate knows single items only; `make loadtest` asks for it by itself."""
    loads = tmp_path / "loads.toml"
    loads.write_text("items_per_request = 4")
    request = request_of(options(loads=loads, slo_ms="auto"), batch_id="b")
    assert (request.slo, request.items_per_request) == (None, 4)
    assert request_of(options(loads=loads, slo_ms="auto", items_per_request=1), batch_id="b").slo is not None
    assert request_of(options(loads=loads, slo_ms="50", rate=5.0), batch_id="b").slo is not None
    for beyond in ("slo_only", "overload"):
        with pytest.raises(UsageError, match="says 4 in a request; add --items-per-request 1"):
            request_of(options(loads=loads, slo_ms="50", **{beyond: True}), batch_id="b")


def test_files_are_named_from_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    access = access_of(options(tls_ca="ca.pem", headers=("Authorization=@token",)))
    assert access.tls_ca == str(tmp_path / "ca.pem")
    assert access.headers == {"Authorization": str(tmp_path / "token")}


def test_a_header_value_given_inline_is_refused_without_being_repeated() -> None:
    with pytest.raises(UsageError) as refused:
        access_of(options(headers=("Authorization=Bearer hunter2",)))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("text", ["image", "image:", ":3", "image:3,x", "image:0", "image:3,-1"])
def test_a_shape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write NAME:DIMS"):
        parse_shape(text)
    assert parse_shape("image:3x224,224") == ("image", (3, 224, 224))
