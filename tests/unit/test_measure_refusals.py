"""What `brim loadtest` refuses before anything is sent: no server, a stranger, a file where out/ should be."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from brim import disk, layout
from brim.errors import UsageError
from brim.records import Server
from loadtest.plan import FIGURE, SEARCH, read_plan
from tests.fakes import FakeServer
from tests.measuring import heard

Brim = Callable[..., tuple[int, str]]


@pytest.fixture
def brim(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Brim:
    """Exit code and stderr of `brim loadtest` in this process."""

    def run(*words: str, out: Path = tmp_path) -> tuple[int, str]:
        ended = heard(out, *words, capfd=capfd)
        return ended.code, "\n".join(ended.errors)

    return run


def test_without_a_server_it_exits_3_and_names_make_serve(brim: Brim) -> None:
    code, errors = brim()
    assert code == 3
    assert "make serve" in errors
    assert len(errors.splitlines()) == 2


def test_out_that_is_a_file_is_refused_before_anything_is_sent(tmp_path: Path, brim: Brim) -> None:
    (tmp_path / "out").write_text("mine")
    with FakeServer() as server:
        code, errors = brim(server.url, server.model, out=tmp_path / "out")
        assert not server.log
    assert code == 6
    assert "out is a file, not a folder" in errors
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("said", [("--senders", "2"), ("--header", "a=@f"), ("--json",), ("http://127.0.0.1:1", "m")])
def test_a_worker_takes_only_what_is_its_own(said: tuple[str, ...], brim: Brim) -> None:
    code, errors = brim("--worker", "127.0.0.1:1", "--allow-remote", "10.0.0.7", *said)
    assert code == 2
    assert f"--worker takes no {said[0]}: the master says what to load" in errors


def test_channels_are_grpc_s(brim: Brim) -> None:
    with FakeServer() as server:
        code, errors = brim(server.url, server.model, "--channels", "2")
    assert code == 2
    assert "--channels 2: only gRPC has channels" in errors


def test_files_of_tls_for_a_target_without_it_are_not_left_unused(tmp_path: Path, brim: Brim) -> None:
    (tmp_path / "ca.pem").touch()
    with FakeServer() as server:
        code, errors = brim(server.url, server.model, "--tls-ca", str(tmp_path / "ca.pem"))
    assert code == 2
    assert f"--tls-ca, --tls-cert: {server.url} is not encrypted; write https://" in errors


def test_larger_requests_of_the_loads_file_are_told_to_cost_the_rate_at_the_slo(tmp_path: Path, brim: Brim) -> None:
    (tmp_path / "loads.toml").write_text("items_per_request = 4")
    code, errors = brim("--slo-ms", "auto", "--loads", str(tmp_path / "loads.toml"))
    assert code == 3  # it went on, and nothing is served
    assert "no rate at the SLO" in errors and "--items-per-request 1" in errors


def test_a_stranger_on_the_port_is_not_measured(tmp_path: Path, brim: Brim) -> None:
    with FakeServer() as stranger:
        server = Server(
            id="brim-20260101t000000z-abcdef", mode="embedded", http=stranger.url, grpc=None, metrics=None,
            pid=os.getpid(), process_started_s=psutil.Process().create_time(), version="2.51.0",
            variants=("null__b8",), repository=str(tmp_path), log=None,
        )  # fmt: skip
        folder = layout.server_folder(tmp_path, server.id)
        disk.save(folder / "server.json", server)
        layout.current_server(tmp_path).symlink_to(folder.name)
        code, errors = brim()
        assert not stranger.log
    assert code == 3
    assert "a stranger" in errors


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("window_second = 5", "unknown key 'window_second'; did you mean 'window_seconds'?"),
        ("window_seconds = 0", "window_seconds is 0.0, must be > 0"),
        ("window_seconds = 90", "window_limit_seconds 60.0 is shorter than window_seconds 90.0"),
        ("seed = 'x'", "seed: expected a whole number, found 'x'"),
        ("seed = ", "loads.toml: "),
    ],
)
def test_a_load_plan_that_cannot_be_is_refused_with_file_and_key(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "loads.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        read_plan(file)
    assert told in str(refused.value) and str(file) in str(refused.value)


def test_a_users_plan_is_laid_over_the_shipped_one(tmp_path: Path) -> None:
    file = tmp_path / "loads.toml"
    file.write_text("seed = 7")
    assert read_plan(file).seed == 7
    assert read_plan(file).window_seconds == read_plan(None).window_seconds == 10


@pytest.mark.parametrize(
    ("period_s", "window_s", "record_s"),
    [
        (0.01, 10.0, 16.5),  # ten seconds, and half of it for what is cut off as warm-up
        (0.22, 10.0, 23.5),  # 100 bins of one batch period
        (1.0, 40.0, 101.5),  # 40 batches
        (3.0, 60.0, 120.0),  # the bounds win
    ],
)
def test_how_long_a_load_lasts_follows_from_the_batch_period(period_s: float, window_s: float, record_s: float) -> None:
    plan = read_plan(None)
    assert plan.window_for(period_s) == pytest.approx(window_s)
    assert plan.record_for(period_s, FIGURE) == pytest.approx(record_s)


@pytest.mark.parametrize(
    ("period_s", "record_s"),
    [
        (0.01, 13.0),  # a window of ten seconds, and little more
        (0.32, 19.1),  # as many bins as can be judged at all
        (1.0, 56.5),
    ],
)
def test_a_load_of_the_search_is_shorter(period_s: float, record_s: float) -> None:
    assert read_plan(None).record_for(period_s, SEARCH) == pytest.approx(record_s)
