"""brim doctor: one line a part, a fix for each that is wrong, and an exit code that says what kind of wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from brim.errors import worst_exit
from serve.doctor import MIN_SHM_BYTES, Facts, Finding, judge
from serve.prerequisites import StubFacts, ToolFacts

STUB = StubFacts(python="3.11.7", numpy="1.26.4", libpython_folder="/lib", runtime="onnxruntime 1.32.0")
TOOLS = ToolFacts(own_python="3.11", tritonserver=True, stub=True, stub_built_for="3.11")
GOOD = Facts(
    system="Linux x86_64", glibc=(2, 36), own_python="3.11.7", tools=TOOLS, stub=STUB, stub_problem="",
    changed_binaries=(), server_problem=None, perf_analyzer_problem=None, cores=2, all_cores=2,
    ports={8000: "", 8001: "pid 7 (nginx)"}, shm_bytes=1 << 30, shm_free_bytes=1 << 30, memory_bytes=8 << 30,
    disk_free_bytes=50 << 30, gpu=None, driver=False, docker=False,
)  # fmt: skip


def exit_code(facts: Facts) -> int:
    return worst_exit(finding.exit_code for finding in judge(facts))


def wrong(facts: Facts) -> list[Finding]:
    return [finding for finding in judge(facts) if finding.exit_code]


def test_a_good_cpu_machine_has_a_line_for_every_part_and_exits_0() -> None:
    assert exit_code(GOOD) == 0
    assert [finding.part for finding in judge(GOOD)] == [
        "platform", "Python", "libpython", "tritonserver", "stub environment", "perf_analyzer", "/dev/shm", "cores",
        "memory", "disk", "ports", "GPU", "docker",
    ]  # fmt: skip
    lines = {finding.part: finding.line for finding in judge(GOOD)}
    assert "no NVIDIA driver: CPU figures only" in lines["GPU"]
    assert "8000 free, 8001 taken by pid 7 (nginx)" in lines["ports"]


@pytest.mark.parametrize(
    ("facts", "part", "code", "fix"),
    [
        (replace(GOOD, stub=replace(STUB, numpy="2.4.0")), "stub environment", 3, "it needs 1.26"),
        (replace(GOOD, stub=replace(STUB, runtime=None)), "stub environment", 3, "make serve"),
        (replace(GOOD, stub=replace(STUB, libpython_folder=None)), "libpython", 6, "apt install libpython3.11"),
        (replace(GOOD, changed_binaries=("tritonserver",)), "tritonserver", 3, "remove .tools"),
        (replace(GOOD, changed_binaries=None), "tritonserver", 3, "make serve"),
        (replace(GOOD, server_problem="GLIBC_2.38 not found"), "tritonserver", 3, "remove .tools"),
        (replace(GOOD, perf_analyzer_problem="not there"), "perf_analyzer", 3, "make serve"),
        (replace(GOOD, shm_free_bytes=64 << 20), "/dev/shm", 6, "128 MiB"),
        (replace(GOOD, memory_bytes=1 << 30), "memory", 6, "3.0 GiB"),
        (replace(GOOD, disk_free_bytes=1 << 20), "disk", 6, "--out"),
        (replace(GOOD, driver=True, gpu="NVIDIA L4, 580.82"), "GPU", 3, "remove .tools/stub"),
    ],
)
def test_what_is_wrong_is_one_part_with_its_fix_and_its_exit_code(facts: Facts, part: str, code: int, fix: str) -> None:
    found = wrong(facts)
    assert [finding.part for finding in found] == [part]
    assert fix in found[0].fix
    assert "\n" not in found[0].line
    assert exit_code(facts) == code


def test_a_set_up_with_python_3_13_says_which_python_the_embedded_server_needs() -> None:
    tools = replace(TOOLS, own_python="3.13", stub=False, stub_built_for=None)
    facts = replace(GOOD, own_python="3.13.1", tools=tools, stub=None, stub_problem="no Python is set up for it")
    assert [finding.part for finding in wrong(facts)] == ["Python", "stub environment"]
    assert "needs 3.11 or 3.12" in wrong(facts)[0].said


def test_where_the_embedded_server_cannot_run_its_parts_are_information() -> None:
    bare = replace(GOOD, tools=replace(TOOLS, tritonserver=False), changed_binaries=None, shm_free_bytes=0)
    assert exit_code(bare) == 6
    for system, glibc in (("Darwin arm64", None), ("Linux aarch64", (2, 36)), ("Linux x86_64", (2, 31))):
        elsewhere = replace(bare, system=system, glibc=glibc)
        assert exit_code(elsewhere) == 0
        assert "works here: analysis, and load to a remote server" in judge(elsewhere)[0].line


def test_a_resource_that_is_just_enough_is_enough() -> None:
    assert exit_code(replace(GOOD, shm_free_bytes=MIN_SHM_BYTES)) == 0
    assert exit_code(replace(GOOD, shm_free_bytes=MIN_SHM_BYTES - 1)) == 6
