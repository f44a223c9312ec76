"""When the soak of a cell ends, when its repeats are enough, and what its process reads and says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from brim.errors import NotReady
from brim.say import Say
from experiments.gpu_check import telemetry
from experiments.gpu_check.cells import Telemetry, Timing
from experiments.gpu_check.child import is_out_of_memory
from experiments.gpu_check.part import run_part
from experiments.gpu_check.timing import Effort, is_flat, measured, soaked, steps_for, summary


def test_times_that_still_fall_by_two_percent_are_not_flat_and_those_within_one_percent_are() -> None:
    assert not is_flat([1.02] * 10 + [1.0] * 10)
    assert is_flat([1.009] * 10 + [1.0] * 10)
    assert is_flat([9.0] * 50 + [1.0] * 20)  # what lies further back is not asked


def test_fewer_than_twenty_repeats_say_nothing_about_flatness() -> None:
    assert not is_flat([1.0] * 19)


def test_one_outlier_does_not_make_a_flat_stretch_unsteady() -> None:
    assert is_flat([1.0] * 15 + [7.0] + [1.0] * 4)


def test_the_soak_lasts_its_least_time_even_if_flat_and_ends_at_its_limit_even_if_not() -> None:
    effort = Effort(soak_s=2.0, soak_limit_s=8.0)
    assert not soaked([1.0] * 100, 1.9, effort)
    assert soaked([1.0] * 100, 2.0, effort)
    assert not soaked([2.0] * 10 + [1.0] * 10, 7.9, effort)
    assert soaked([2.0], 8.0, effort)


def test_repeats_end_when_all_are_in_or_when_the_time_is_up_but_never_below_the_fewest() -> None:
    effort = Effort(repeats=25, fewest_repeats=5, measure_limit_s=8.0)
    assert measured(25, 0.1, effort) and not measured(24, 7.9, effort)
    assert measured(5, 8.0, effort) and not measured(4, 80.0, effort)


def test_short_steps_are_gathered_into_a_repeat_and_long_ones_stand_alone() -> None:
    assert [steps_for(0.02, step_s) for step_s in (0.003, 0.02, 5.0, 1e-9)] == [7, 1, 1, 1000]


def test_the_summary_of_one_to_five_has_quartiles_two_and_four() -> None:
    assert summary([5.0, 1.0, 4.0, 2.0, 3.0], steps=7, soak_s=2.5, flat=True) == Timing(
        median_ms=3.0, min_ms=1.0, q1_ms=2.0, q3_ms=4.0, max_ms=5.0,
        repeats=5, steps_per_repeat=7, soak_s=2.5, flat=True,
    )  # fmt: skip


def test_a_reading_of_nvidia_smi_keeps_what_is_a_number_and_drops_what_is_not() -> None:
    assert telemetry.parse("1980, 3201, 41, 612.33, 1204") == Telemetry(
        sm_mhz=1980.0, memory_mhz=3201.0, temperature_c=41.0, power_w=612.33, used_mib=1204.0
    )
    assert telemetry.parse("1980, 3201, 41, [N/A], 1204") == Telemetry(
        sm_mhz=1980.0, memory_mhz=3201.0, temperature_c=41.0, power_w=None, used_mib=1204.0
    )


def test_no_answer_of_nvidia_smi_is_no_reading() -> None:
    assert telemetry.parse("") is None
    assert telemetry.parse("No devices were found") is None


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
    ],
)
def test_every_way_in_which_memory_runs_out_is_known_as_such(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))


def test_an_error_that_memory_caused_is_out_of_memory_and_another_is_not() -> None:
    assert not is_out_of_memory(RuntimeError("GET was unable to find an engine to execute this computation"))
    try:
        try:
            raise MemoryError
        except MemoryError as cause:
            raise RuntimeError("the backend compiler failed") from cause
    except RuntimeError as error:
        assert is_out_of_memory(error)


@pytest.mark.parametrize("package", ["torch", "timm"])
def test_a_missing_package_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "timm"):
        monkeypatch.setitem(sys.modules, name, None if name == package else sys)  # None: not to be found
    with pytest.raises(NotReady, match=f"needs the Python package {package}"):
        run_part(Say(), tmp_path, minutes=1)
    assert list(tmp_path.iterdir()) == []
