"""What the command line says of rates: schedules as arithmetic, and one line for each word that does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brim.errors import UsageError
from experiments.measure import rates
from experiments.measure.options import request_of
from tests.unit.test_measure_options import options


def test_a_constant_rate_is_equally_spaced_and_lasts_as_long_as_it_should() -> None:
    asked = rates.open_loop(options(rate=200.0, arrivals="constant", seconds=2.0))
    assert asked is not None
    assert asked.offsets_ns.tolist() == list(range(0, 2_000_000_000, 5_000_000))
    assert (asked.arrivals, asked.seed, asked.seconds, asked.outstanding) == ("constant", None, 2.0, 512)


def test_arrivals_are_memoryless_unless_a_law_is_named_and_the_seed_decides_them() -> None:
    one, same, other = (rates.open_loop(options(rate=100.0, seed=seed)) for seed in (1, 1, 2))
    assert one is not None and same is not None and other is not None
    assert one.arrivals == "poisson" and one.seconds == rates.SECONDS
    assert np.array_equal(one.offsets_ns, same.offsets_ns)
    assert not np.array_equal(one.offsets_ns, other.offsets_ns)


def test_cv_alone_says_gamma() -> None:
    asked = rates.open_loop(options(rate=1000.0, cv=3.0))
    assert asked is not None
    gaps = np.diff(asked.offsets_ns)
    assert asked.arrivals == "gamma"
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.1)


def test_a_trace_is_played_from_its_first_stamp_as_fast_as_asked(tmp_path: Path) -> None:
    file = tmp_path / "trace.txt"
    file.write_text("100.0\n100.5\n102.0\n104.0\n", "ascii")
    asked = rates.open_loop(options(trace=file, speed_up=2.0))
    assert asked is not None
    assert asked.offsets_ns.tolist() == [0, 250_000_000, 1_000_000_000, 2_000_000_000]
    assert asked.rate_per_s == 2.0  # 4 requests in 2 s
    cut = rates.open_loop(options(trace=file, seconds=3.0))
    assert cut is not None and cut.offsets_ns.tolist() == [0, 500_000_000, 2_000_000_000]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"rate": 0.0}, "--rate is 0, must be above 0"),
        ({"rate": -3.0}, "--rate is -3"),
        ({"rate": float("nan")}, "--rate is nan"),
        ({"rate": float("inf")}, "--rate is inf"),
        ({"rate": 5.0, "seconds": 0.0}, "--seconds is 0"),
        ({"rate": 5.0, "seconds": 1e9}, "--seconds is 1e.09, must be above 0 and at most 3600"),
        ({"rate": 1e9}, "arrivals"),
        ({"rate": 0.001, "seconds": 1.0}, "sends nothing within 1 s"),
        ({"rate": 5.0, "arrivals": "gamma"}, "needs --cv"),
        ({"rate": 5.0, "arrivals": "gamma", "cv": -1.0}, "cv is -1"),
        ({"rate": 5.0, "arrivals": "constant", "cv": 1.0}, "--cv is of gamma arrivals"),
        ({"rate": 5.0, "speed_up": 2.0}, "--speed-up is of --trace"),
        ({"rate": 5.0, "trace": Path("x")}, "leave one out"),
        ({"trace": Path("x"), "seed": 1}, "--seed is of --rate"),
        ({"arrivals": "poisson"}, "--arrivals is of --rate"),
        ({"seconds": 5.0}, "--seconds is of --rate"),
        ({"outstanding": 5}, "--outstanding is of --rate"),
    ],
)
def test_what_does_not_fit_a_rate_is_told_in_one_line(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as told:
        rates.open_loop(options(**asked))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["", "1\n1\nx\n", "2\n1\n", "-1\n2\n", "nan\n", "5\n5\n"])
def test_a_trace_that_is_none_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "trace.txt"
    file.write_text(text, "ascii")
    with pytest.raises(UsageError, match="trace") as told:
        rates.open_loop(options(trace=file))
    assert "\n" not in str(told.value)


def test_an_slo_is_in_milliseconds_or_follows_from_the_full_batch() -> None:
    asked, auto = rates.slo(options(slo_ms="50", percentile=99.9)), rates.slo(options(slo_ms="auto"))
    assert asked is not None and (asked.limit_ms, asked.percentile, asked.seconds) == (50.0, 99.9, 60.0)
    assert auto is not None and (auto.limit_ms, auto.percentile) == (None, None)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"slo_ms": "0"}, "--slo-ms is 0"),
        ({"slo_ms": "-5"}, "--slo-ms is -5"),
        ({"slo_ms": "inf"}, "--slo-ms is inf"),
        ({"slo_ms": "fast"}, "write milliseconds, or auto"),
        ({"slo_ms": "50", "percentile": 100.0}, "must lie between 0 and 100"),
        ({"slo_ms": "50", "percentile": 0.0}, "must lie between 0 and 100"),
        ({"slo_ms": "50", "percentile": float("nan")}, "must lie between 0 and 100"),
        ({"slo_ms": "50", "slo_seconds": -1.0}, "--slo-seconds is -1"),
        ({"percentile": 99.0}, "--percentile is of --slo-ms"),
        ({"slo_only": True}, "--slo-only is of an SLO"),
        ({"overload": True}, "--overload is of an SLO: add --slo-ms"),
        ({"overload": True, "rate": 5.0}, "--overload is of the search for a rate, and --rate gives one"),
        ({"overload": True, "rate": 5.0, "slo_ms": "50"}, "--overload is of the search for a rate, and --rate gives"),
        ({"slo_only": True, "trace": Path("x"), "slo_ms": "50"}, "--slo-only is of the search for a rate, and --trace"),
        ({"rate": 5.0, "slo_ms": "auto"}, "with --rate write milliseconds"),
    ],
)
def test_what_does_not_fit_an_slo_is_told_in_one_line(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        rates.slo(options(**asked))


def test_a_rate_and_a_concurrency_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="leave it or --rate out"):
        request_of(options(rate=5.0, concurrency="8"), batch_id="b")
