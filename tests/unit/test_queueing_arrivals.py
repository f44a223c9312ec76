"""Arrival laws by their moments, and traces: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from brim.errors import UsageError
from brim.records import LoadPoint
from queueing.arrivals import Offsets, by_law, constant, gamma, offsets_of, poisson, read_trace, speed_up

SECOND = 1_000_000_000


def gaps_s(offsets: Offsets) -> NDArray[np.float64]:
    gaps: NDArray[np.float64] = np.diff(offsets) / SECOND
    return gaps


def test_constant_arrivals_are_equally_spaced_from_the_start_and_end_before_the_end() -> None:
    assert constant(4, 1.0).tolist() == [0, SECOND // 4, SECOND // 2, 3 * SECOND // 4]
    assert constant(3, 1.0).tolist() == [0, 333_333_333, 666_666_667]


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gamma_gaps_have_the_rate_and_the_cv_that_were_asked_for(cv: float) -> None:
    """Within 4 standard errors: of a mean cv/sqrt(n); of the cv of gamma gaps at most cv·sqrt((1 + 3 cv²)/2n)."""
    gaps = gaps_s(gamma(200, cv, 1000, seed=3)) * 200
    assert gaps.mean() == pytest.approx(1, abs=4 * cv / gaps.size**0.5)
    assert gaps.std() == pytest.approx(cv, abs=4 * cv * ((1 + 3 * cv**2) / (2 * gaps.size)) ** 0.5)


def test_poisson_counts_vary_by_the_square_root() -> None:
    """1000 seconds at 100/s: mean and variance of the counts are both 100, within 4 standard errors."""
    counts = np.bincount(poisson(100, 1000, seed=1) // SECOND, minlength=1000)
    assert counts.mean() == pytest.approx(100, abs=4 * (100 / 1000) ** 0.5)
    assert counts.var() == pytest.approx(100, abs=4 * 100 * (2 / 1000) ** 0.5)


def test_poisson_gaps_are_exponential() -> None:
    """Their largest distance from the law, times sqrt(n), passes 1.95 once in a thousand (Kolmogorov)."""
    gaps = np.sort(gaps_s(poisson(100, 500, seed=2))) * 100
    distance = np.abs(1 - np.exp(-gaps) - (np.arange(gaps.size) + 0.5) / gaps.size).max()
    assert distance * gaps.size**0.5 < 1.95


def test_arrivals_are_sorted_and_all_before_the_end() -> None:
    for offsets in (constant(777, 3.0), poisson(777, 3.0, 5), gamma(777, 4.0, 3.0, 5)):
        assert offsets.dtype == np.int64
        assert (np.diff(offsets) >= 0).all() and offsets[0] >= 0 and offsets[-1] < 3 * SECOND


def test_the_same_seed_gives_the_same_arrivals_and_another_seed_others() -> None:
    assert (gamma(50, 2, 20, seed=4) == gamma(50, 2, 20, seed=4)).all()
    assert not np.array_equal(poisson(50, 20, seed=4), poisson(50, 20, seed=5))


def test_a_longer_run_begins_like_the_shorter_one() -> None:
    short, long = poisson(50, 20, seed=4), poisson(50, 200, seed=4)
    assert (long[: short.size] == short).all()


def test_another_rate_is_the_same_pattern_faster() -> None:
    slow, fast = poisson(50, 20, seed=4), poisson(100, 10, seed=4)
    assert slow.size == fast.size
    assert np.abs(slow - 2 * fast).max() <= 2  # ns, of rounding


def test_a_point_names_its_law() -> None:
    def point(arrivals: str, cv: float | None = None) -> LoadPoint:
        return LoadPoint(mode="open", rate_per_s=50, arrivals=arrivals, cv=cv, seed=4, outstanding=9)  # type: ignore[arg-type]

    assert (offsets_of(point("constant"), 2) == constant(50, 2)).all()
    assert (offsets_of(point("poisson"), 2) == poisson(50, 2, 4)).all()
    assert (offsets_of(point("gamma", 2.0), 2) == gamma(50, 2.0, 2, 4)).all()
    assert (by_law("gamma", 50, 2, cv=2.0, seed=4) == gamma(50, 2.0, 2, 4)).all()
    with pytest.raises(UsageError, match="read from its file"):
        offsets_of(point("trace"), 2)


@pytest.mark.parametrize(
    ("rate", "seconds", "told"),
    [
        (0, 1, "rate is 0"),
        (-3, 1, "rate is -3"),
        (float("nan"), 1, "rate is nan"),
        (float("inf"), 1, "rate is inf"),
        (5, 0, "duration is 0"),
        (1e9, 3600, "arrivals: lower"),
    ],
)
def test_impossible_rates_and_durations_are_refused(rate: float, seconds: float, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        constant(rate, seconds)
    with pytest.raises(UsageError, match=told):
        poisson(rate, seconds, seed=1)


@pytest.mark.parametrize("cv", [0.0, -1.0, 1e-200, 1e200, float("nan"), float("inf")])
def test_an_impossible_cv_is_refused(cv: float) -> None:
    with pytest.raises(UsageError, match="cv is"):
        gamma(10, cv, 1, seed=1)


def test_a_trace_counts_from_its_first_timestamp(tmp_path: Path) -> None:
    (tmp_path / "trace.txt").write_text("1700000000.25\n1700000000.5\n\n1700000001.25\n")
    assert read_trace(tmp_path / "trace.txt").tolist() == [0, SECOND // 4, SECOND]


def test_a_numpy_trace_holds_seconds_or_nanoseconds(tmp_path: Path) -> None:
    np.save(tmp_path / "seconds.npy", np.array([1.0, 1.5]))
    np.save(tmp_path / "ns.npy", np.array([7, 9], dtype=np.int64))
    assert read_trace(tmp_path / "seconds.npy").tolist() == [0, SECOND // 2]
    assert read_trace(tmp_path / "ns.npy").tolist() == [0, 2]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("1\n0.5\n", "timestamp 2 is earlier"),
        ("-1\n2\n", "timestamp 1 is -1"),
        ("1\nnan\n", "timestamp 2 is nan"),
        ("1\ninf\n", "timestamp 2 is inf"),
        ("time\n1\n", "line 1: 'time' is not"),
        ("1,2\n", "line 1: '1,2' is not"),
    ],
)
def test_a_trace_that_cannot_be_replayed_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "trace.txt").write_text(text)
    with pytest.raises(UsageError, match=told):
        read_trace(tmp_path / "trace.txt")


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_trace(tmp_path / "none.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        read_trace(tmp_path / "bytes.txt")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="cannot be read"):
        read_trace(tmp_path / "objects.npy")
    np.save(tmp_path / "square.npy", np.ones((2, 2)))
    with pytest.raises(UsageError, match="must be a list of numbers"):
        read_trace(tmp_path / "square.npy")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04 and no more"], ids=["empty", "cut off", "no zip"])
def test_a_numpy_file_without_an_array_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "trace.npy").write_bytes(content)
    with pytest.raises(UsageError, match=r"trace\.npy cannot be read"):
        read_trace(tmp_path / "trace.npy")


def test_an_archive_of_arrays_is_no_trace_whatever_its_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "traces.npz", stamps=np.array([1.0, 2.0]))
    (tmp_path / "traces.npz").rename(tmp_path / "trace.npy")
    with pytest.raises(UsageError, match=r"trace\.npy cannot be read"):
        read_trace(tmp_path / "trace.npy")


def test_speeding_up_shrinks_every_gap() -> None:
    offsets = np.array([0, 10, 30], dtype=np.int64)
    assert speed_up(offsets, 2).tolist() == [0, 5, 15]
    assert speed_up(offsets, 0.5).tolist() == [0, 20, 60]


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_speed_up_is_refused(factor: float) -> None:
    with pytest.raises(UsageError, match="speed-up is"):
        speed_up(np.array([0], dtype=np.int64), factor)
