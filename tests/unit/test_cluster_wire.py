"""What travels in a cluster: addresses, introductions, permissions, files in chunks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from brim.errors import InvalidRecord, UsageError
from brim.records import ROW, ROW_HEADER, Access, LoadPoint, TargetLimit
from loadtest.cluster_driver import numeric, refuse
from loadtest.cluster_wire import (
    CHUNK_BYTES,
    LOOK_S,
    SILENT_S,
    Arriving,
    Hello,
    Place,
    Silence,
    chunks,
    parse_place,
    permitted,
    read_hello,
    surplus,
    take,
    unlike,
    whole,
    whole_rows,
)  # fmt: skip
from loadtest.driver import LoadSpec
from loadtest.senders.job import share

HELLO = Hello(host="lab-2", pid=17, token="a1", brim="0.1.0", protocol=1, row_schema=1)
LOOPBACK = Place(host="127.0.0.1")


def spec(**changed: Any) -> LoadSpec:
    usual: dict[str, Any] = {
        "url": "http://127.0.0.1:8000", "model": "m", "version": "", "point": LoadPoint(concurrency=4, senders=2),
        "payload": "p", "folder": "f", "rows": "r", "first_worker": 0, "seconds": 1.0, "timeout_s": 1.0,
        "drain_s": 1.0, "samples": 0,
    }  # fmt: skip
    return LoadSpec(**{**usual, **changed})


# ---------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("text", "place", "told"),
    [
        ("127.0.0.1", Place(host="127.0.0.1", port=5557), "127.0.0.1:5557"),
        ("lab-1:6000", Place(host="lab-1", port=6000), "lab-1:6000"),
        ("[::1]:6000", Place(host="::1", port=6000), "[::1]:6000"),
        ("[::1]", Place(host="::1", port=5557), "[::1]:5557"),
        ("fe80::2", Place(host="fe80::2", port=5557), "[fe80::2]:5557"),
    ],
)
def test_an_address_is_a_host_and_perhaps_a_port(text: str, place: Place, told: str) -> None:
    assert parse_place(text, "--master") == place
    assert str(place) == told


@pytest.mark.parametrize(
    "text", ["", ":5557", "lab-1:", "lab-1:0", "lab-1:65536", "http://lab-1", "a@b", "[::1", "a b"]
)
def test_what_is_no_address_is_refused_by_the_options_name(text: str) -> None:
    with pytest.raises(UsageError, match="--worker"):
        parse_place(text, "--worker")


@pytest.mark.parametrize("text", ["0.0.0.0", "0.0.0.0:5557", "*:5557", "[::]:5557", "::", "[::ffff:0.0.0.0]:5557"])
def test_every_network_at_once_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="every network"):
        parse_place(text, "--master")


@pytest.mark.parametrize("host", ["0", "00", "0x0", "0.0", "000.0.0.0", "0.0.0.0", "::", "::ffff:0.0.0.0", "0::0"])
def test_every_network_at_once_is_refused_in_whatever_spelling_the_resolver_takes(host: str) -> None:
    with pytest.raises(UsageError, match="every network"):
        numeric(Place(host=host))


@pytest.mark.parametrize(("host", "address"), [("127.1", "127.0.0.1"), ("0x7f000001", "127.0.0.1"), ("::1", "::1")])
def test_an_address_in_another_spelling_is_the_address(host: str, address: str) -> None:
    assert numeric(Place(host=host)) == address


# ---------------------------------------------------------------------------- who joins


def test_a_worker_like_ours_with_a_free_place_joins() -> None:
    assert unlike(HELLO, dataclasses.replace(HELLO, host="", pid=0, token="")) == ""
    assert surplus(HELLO, {}, 1) == ""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"brim": "0.2.0"}, "worker lab-2/17 runs Brim 0.2.0, this is 0.1.0"),
        ({"protocol": 2}, "worker lab-2/17 speaks cluster protocol 2, this is 1"),
        ({"row_schema": 9}, "worker lab-2/17 writes rows of schema 9, this is 1"),
    ],
)
def test_a_worker_unlike_ours_is_refused_by_name_and_difference(changed: dict[str, Any], said: str) -> None:
    assert unlike(dataclasses.replace(HELLO, **changed), HELLO).startswith(said)


def test_a_worker_that_comes_twice_is_counted_once() -> None:
    assert "came twice" in surplus(HELLO, {"a1": HELLO}, 2)


def test_one_worker_more_than_expected_is_refused() -> None:
    other = dataclasses.replace(HELLO, token="b2")
    assert "one too many: the 1 that were expected are here" in surplus(other, {"a1": HELLO}, 1)


@pytest.mark.parametrize(
    "hello",
    [
        None, "lab-2", {}, {"host": "lab-2"}, {**dataclasses.asdict(HELLO), "extra": 1},
        {**dataclasses.asdict(HELLO), "pid": "17"}, {**dataclasses.asdict(HELLO), "host": "\x1b[31mred"},
        {**dataclasses.asdict(HELLO), "host": ""}, {**dataclasses.asdict(HELLO), "brim": "9" * 101},
    ],
)  # fmt: skip
def test_an_introduction_that_is_none_or_would_spoil_a_terminal_is_refused(hello: Any) -> None:
    with pytest.raises(UsageError):
        read_hello({"kind": "hello", "hello": hello})


def test_an_introduction_survives_the_journey() -> None:
    assert read_hello({"kind": "hello", "hello": dataclasses.asdict(HELLO)}) == HELLO


@pytest.mark.parametrize("value", [None, "7", 7.0, True])
def test_a_field_of_another_kind_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRecord, match="offset is no int"):
        take({"kind": "chunk", "offset": value}, "offset", int)


def looks(silence: Silence, first: float, last: float) -> float:
    """Look every quarter of a second; the last answer."""
    return [silence.look(first + LOOK_S * n) for n in range(int((last - first) / LOOK_S) + 1)][-1]


def test_silence_is_the_time_since_the_other_side_spoke() -> None:
    silence = Silence(100.0)
    assert looks(silence, 100.0, 104.0) == pytest.approx(4.0)
    silence.broken(104.1)
    assert looks(silence, 104.1, 106.1) == pytest.approx(2.0)
    assert looks(silence, 106.1, 110.1) > SILENT_S


def test_time_in_which_nobody_looked_is_not_silence() -> None:
    silence = Silence(100.0)
    assert silence.look(160.0) <= 2 * LOOK_S  # this process stood still for a minute
    assert looks(silence, 160.25, 166.0) > SILENT_S  # and then heard nothing all the same


# ---------------------------------------------------------------------------- permissions


def limit(rate: float | None) -> TargetLimit:
    return TargetLimit(host="lab-1", max_rate_per_s=rate)


@pytest.mark.parametrize(
    ("own", "masters", "cap"), [(None, None, None), (50.0, None, 50.0), (None, 20.0, 20.0), (50.0, 20.0, 20.0)]
)
def test_a_worker_keeps_to_the_lower_cap(own: float | None, masters: float | None, cap: float | None) -> None:
    assert permitted({"lab-1": limit(own)}, {"lab-1": limit(masters)}) == {"lab-1": limit(cap)}


def test_what_only_the_master_allows_a_worker_does_not_load() -> None:
    assert permitted({}, {"lab-1": limit(None)}) == {}


@pytest.mark.parametrize(
    ("place", "changed", "said"),
    [
        (LOOPBACK, {"point": LoadPoint(concurrency=4, senders=3)}, "3 senders were asked for, and 2 workers are here"),
        (LOOPBACK, {"point": LoadPoint(concurrency=4, sender="grpc_aio", protocol="grpc")}, "HTTP over the wire"),
        (LOOPBACK, {"point": LoadPoint(concurrency=4, transport="shared_memory")}, "HTTP over the wire"),
        (
            LOOPBACK,
            {"point": LoadPoint(mode="open", rate_per_s=9.0, arrivals="poisson", outstanding=64)},
            "closed loop",
        ),
        (LOOPBACK, {"access": Access(headers={"authorization": "token.txt"})}, "workers cannot read them"),
        (LOOPBACK, {"access": Access(tls_ca="ca.pem")}, "workers cannot read them"),
        (Place(host="192.0.2.7"), {}, "on each load host 127.0.0.1 is that host itself"),
    ],
)
def test_what_a_cluster_does_not_send_is_told_before_anything_leaves(
    place: Place, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        refuse(spec(**changed), place, workers=2)


def test_a_plain_http_load_is_not_refused() -> None:
    refuse(spec(), LOOPBACK, workers=2)
    refuse(spec(url="http://192.0.2.1:8000"), Place(host="192.0.2.7"), workers=2)


@pytest.mark.parametrize(("whole_load", "workers"), [(7, 2), (64, 3), (5, 5), (16, 1)])
def test_the_shares_of_the_workers_are_even_and_add_up(whole_load: int, workers: int) -> None:
    shares = [share(whole_load, workers, n) for n in range(workers)]
    assert sum(shares) == whole_load
    assert max(shares) - min(shares) <= 1


# ---------------------------------------------------------------------------- files in chunks


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 35])
def test_a_file_arrives_as_it_was_sent(size: int, tmp_path: Path) -> None:
    data = bytes(range(256))[:size]
    arriving, parts = Arriving("rows"), []
    for offset, chunk in chunks(data, 10):
        arriving.add(offset, chunk)
        parts.append(chunk)
    arriving.end(whole(data))
    assert b"".join(parts) == data
    assert len(parts) == -(-size // 10)


def test_a_chunk_is_a_whole_number_of_rows_and_so_is_a_header() -> None:
    assert CHUNK_BYTES % ROW.size == 0
    assert ROW_HEADER.size == ROW.size


@pytest.mark.parametrize(("length", "whole_length"), [(0, 0), (31, 0), (32, 32), (95, 64)])
def test_a_row_that_is_cut_short_does_not_leave(length: int, whole_length: int) -> None:
    data = bytes(range(length))
    assert whole_rows(data) == data[:whole_length]


@pytest.mark.parametrize("offset", [0, 2, 4])
def test_a_chunk_that_comes_again_or_too_early_is_refused(offset: int) -> None:
    arriving = Arriving("rows")
    arriving.add(0, b"abc")
    with pytest.raises(InvalidRecord, match="rows"):
        arriving.add(offset, b"def")


def test_an_empty_chunk_is_refused() -> None:
    with pytest.raises(InvalidRecord):
        Arriving("rows").add(0, b"")


def test_a_file_that_lacks_its_end_is_refused() -> None:
    arriving = Arriving("rows")
    arriving.add(0, b"abc")
    with pytest.raises(InvalidRecord, match="3 of 4 bytes"):
        arriving.end(whole(b"abcd"))


def test_a_file_that_was_changed_on_its_way_is_refused() -> None:
    arriving = Arriving("rows")
    arriving.add(0, b"abX")
    with pytest.raises(InvalidRecord, match="not the same"):
        arriving.end(whole(b"abc"))


def test_a_file_above_its_bound_is_refused_before_it_is_taken() -> None:
    arriving = Arriving("rows", limit=5)
    arriving.add(0, b"abc")
    with pytest.raises(InvalidRecord, match="more than 5 bytes"):
        arriving.add(3, b"def")
    assert arriving.size == 3
