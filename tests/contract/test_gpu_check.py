"""gpu-check with real child processes and the real torch: on the CPU with tiny cells, on a GPU where there is one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="gpu-check runs torch, this environment has none")
pytest.importorskip("timm", reason="gpu-check builds its networks with timm, this environment has none")

from brim import disk, layout  # noqa: E402  # behind the skips
from brim.errors import NoResource, NoValidNumber  # noqa: E402
from brim.say import Say  # noqa: E402
from experiments.gpu_check import child, host, part, work  # noqa: E402
from experiments.gpu_check.cells import Cell, Entry, Layout, Mode, Precision  # noqa: E402
from experiments.gpu_check.child import Spec  # noqa: E402
from experiments.gpu_check.part import run_part  # noqa: E402
from experiments.gpu_check.results import GpuCheck  # noqa: E402
from experiments.gpu_check.timing import Effort  # noqa: E402

pytestmark = pytest.mark.contract

QUICK = Effort(soak_s=0.05, soak_limit_s=0.2, repeats=5, measure_limit_s=0.2, fewest_repeats=2, loaded_s=0.01)
QUIET = Say(quiet=True)
#: A child loads torch and timm, which takes long on a busy machine of two cores.
PATIENCE_S = 240.0
TIMEOUT_MINUTES = 15.0


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that wait for each other on a busy machine make a tiny step a hundred times slower."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the children
    torch.set_num_threads(1)


def copy(size: int, subject: str = "d2d") -> Cell:
    return Cell(kind="copy", subject=subject, sizes=(size,), precision="bytes")


def product(side: int, precision: Precision) -> Cell:
    return Cell(kind="matmul", subject="square", sizes=(side, side, side), precision=precision)


def layer(groups: int, precision: Precision, layout_: Layout) -> Cell:
    return Cell(kind="layer", subject=f"of {groups} groups", sizes=(8, 8, groups, 14), precision=precision,
                layout=layout_, batch=2)  # fmt: skip


def network(subject: str, precision: Precision, layout_: Layout, mode: Mode = "eager", batch: int = 2) -> Cell:
    return Cell(
        kind="network", subject=subject, sizes=(64,), precision=precision, layout=layout_, mode=mode, batch=batch
    )


def measure(cell: Cell) -> Entry:
    return child.measure(Spec(cell=cell, device="cpu", effort=QUICK, gpu_uuid=""))


@pytest.mark.parametrize(
    "cell",
    [
        copy(2**20),
        copy(2**20, "h2d"),
        *(product(64, precision) for precision in ("fp16", "bf16", "tf32", "fp32")),
        layer(1, "fp32", "nchw"),
        layer(8, "fp16", "nhwc"),
        network("test_resnet", "fp32", "nchw"),
        network("test_resnet", "fp16", "nhwc", batch=1),
        network("test_efficientnet", "tf32", "nchw"),
    ],
    ids=lambda cell: cell.label,
)
def test_each_kind_of_cell_gives_a_figure_and_an_output_close_to_its_reference(cell: Cell) -> None:
    entry = measure(cell)
    assert entry.outcome == "ok", entry.reason
    assert entry.timing and entry.timing.repeats >= QUICK.fewest_repeats
    assert entry.relative_error is not None
    assert entry.relative_error <= {"bytes": 0.0, "fp32": 1e-4, "tf32": 1e-4}.get(cell.precision, 2e-2)


def test_a_compiled_network_answers_as_the_eager_one() -> None:
    entry = measure(network("test_resnet", "fp32", "nchw", mode="compiled"))
    assert entry.outcome == "ok", entry.reason
    assert entry.relative_error is not None and entry.relative_error <= 1e-4


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (torch.OutOfMemoryError("CUDA ran short: tried to allocate 2.00 GiB"), "oom"),
        (RuntimeError("no kernel image is available for execution on the device"), "failed"),
    ],
    ids=["memory", "another error"],
)
def test_what_torch_raises_inside_a_cell_is_data(
    error: Exception, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises() -> None:
        raise error

    monkeypatch.setattr(work, "build", lambda cell, device: work.Work(step=raises, relative_error=lambda output: 0.0))
    entry = measure(copy(2**10))
    assert (entry.outcome, entry.timing) == (outcome, None)
    assert str(error) in entry.reason


def test_an_output_that_is_off_not_finite_or_equal_for_all_images_is_no_figure() -> None:
    good = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    bad = good.clone()
    bad[0, 0] = float("nan")
    with pytest.raises(work.WrongOutput, match="not finite"):
        work._relative_error(bad, good, "fp32")
    with pytest.raises(work.WrongOutput, match="off by"):
        work._relative_error(good * 1.2, good, "fp16")
    with pytest.raises(work.WrongOutput, match="all images"):
        work._refuse_degenerate(good[:1].repeat(4, 1))
    with pytest.raises(work.WrongOutput, match="all classes"):
        work._refuse_degenerate(good[:, :1].repeat(1, 10))
    assert work._relative_error(good * 1.1, good, "fp16") == pytest.approx(0.1, rel=1e-5)


@pytest.fixture(scope="module")
def this_host() -> host.Host:
    """What a child says of this machine; a child that loads torch takes seconds, so it is asked once."""
    return part._probe("cpu")


PART = """
import dataclasses, sys, types
from pathlib import Path
from brim import cli, disk
from experiments.gpu_check import part
from experiments.gpu_check.cells import Cell
from experiments.gpu_check.host import Host
from experiments.gpu_check.timing import Effort

plan = [Cell(kind="copy", subject="d2d", sizes=(2**20 + 4 * n,), precision="bytes") for n in range(2)]
quick = Effort(soak_s=0.0, soak_limit_s=0.1, repeats=5, measure_limit_s=0.1, fewest_repeats=2, loaded_s=0.0)
part._probe = lambda device: disk.load(Host, Path(sys.argv[2]))

@cli.verb("a part of two cells")
def status(say, out):
    part.run_part(say, out, minutes=60, device="cpu", plan=plan, effort=quick, limit_s=lambda cell: 600.0)

cli.VERBS["status"] = ("a_part", "")
sys.modules["a_part"] = types.SimpleNamespace(command=status)
cli.main(["status", "--out", sys.argv[1]])
"""


@pytest.fixture
def start(this_host: host.Host, tmp_path: Path) -> Callable[[], subprocess.Popen[str]]:
    """Starts a part of two cells in a process of its own, behind the real front door."""
    disk.save(tmp_path / "host.json", this_host)
    command = [sys.executable, "-c", PART, str(tmp_path), str(tmp_path / "host.json")]
    return lambda: subprocess.Popen(command, cwd=layout.CHECKOUT, stderr=subprocess.PIPE, text=True)


def _children_of(folder: Path) -> list[int]:
    """Processes whose command line names this folder as the place of a cell's spec."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            line = (process / "cmdline").read_bytes() if process.name.isdigit() else b""
        except OSError:
            continue
        if f"{folder}/".encode() in line and b"gpu_check.child\0measure" in line:
            found.append(int(process.name))
    return found


def _until(what: str, held: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not held():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE_S} s"
        time.sleep(0.02)


def _journal(folder: Path) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in folder.glob("gpu-check/*/journal.jsonl"))


def test_a_part_killed_in_a_cell_leaves_no_child_and_the_next_goes_on_with_what_is_left_whatever_comes_of_it(
    tmp_path: Path, start: Callable[[], subprocess.Popen[str]], this_host: host.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start() as killed:
        try:
            _until("the first cell is done", lambda: _journal(tmp_path).endswith("\n"))
            _until("the second cell runs", lambda: bool(_children_of(tmp_path)))
        finally:
            killed.send_signal(signal.SIGKILL)
    _until("its child is gone", lambda: not _children_of(tmp_path))
    first = _journal(tmp_path)
    assert first.count("\n") == 1

    monkeypatch.setattr(part, "_probe", lambda device: this_host)
    slow, impossible = product(65, "fp32"), copy(2**50)
    plan = [copy(2**20), impossible, slow]

    def limit(cell: Cell) -> float:
        return 1.0 if cell == slow else PATIENCE_S  # nobody loads torch, soaks and measures within a second here

    def go_on(minutes: float) -> GpuCheck:
        return run_part(QUIET, tmp_path, minutes=minutes, device="cpu", plan=plan, effort=QUICK, limit_s=limit)

    halfway = go_on(0.001)  # a part runs one cell at least
    assert [entry.outcome for entry in halfway.entries] == ["ok", "oom"]
    assert halfway.cells_left == 1
    result = go_on(TIMEOUT_MINUTES)
    assert [(e.cell, e.outcome) for e in result.entries] == list(zip(plan, ["ok", "oom", "timeout"], strict=True))
    assert result.entries[:2] == halfway.entries
    assert result.cells_left == 0
    assert _journal(tmp_path).startswith(first), "the cell of the part that was killed was not run again"
    (folder,) = (tmp_path / "gpu-check").iterdir()
    assert disk.load(GpuCheck, folder / "gpu-check.json") == result
    assert "| d2d | " in (folder / "gpu-check.md").read_text(encoding="utf-8")
    with disk.lock(folder / "lock", "busy"), pytest.raises(NoResource, match="another gpu-check"):
        go_on(1)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_in_a_cell_leaves_no_child_and_no_entry_of_it(
    tmp_path: Path, start: Callable[[], subprocess.Popen[str]], times: int
) -> None:
    with start() as child:
        _until("a cell runs", lambda: bool(_children_of(tmp_path)))
        for _ in range(times):
            child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "Traceback" not in errors
    _until("its child is gone", lambda: not _children_of(tmp_path))
    assert _journal(tmp_path) == ""
    if times == 1:
        assert errors.splitlines()[-1] == "brim: exit 130 (aborted)"
        (file,) = tmp_path.glob("gpu-check/*/gpu-check.json")
        assert disk.load(GpuCheck, file).cells_left == 2


def test_a_plan_of_which_nothing_gave_a_figure_has_no_valid_number(
    tmp_path: Path, this_host: host.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, "_probe", lambda device: this_host)
    with pytest.raises(NoValidNumber, match="no cell gave a figure .not done within 1 s"):
        run_part(QUIET, tmp_path, minutes=TIMEOUT_MINUTES, device="cpu", plan=[copy(2**20)], effort=QUICK,
                 limit_s=lambda cell: 1.0)  # fmt: skip


def test_without_a_gpu_the_front_door_says_so_in_one_line_and_exits_3(tmp_path: Path) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "brim", "gpu-check", "--out", str(tmp_path)],
        capture_output=True, text=True, cwd=layout.CHECKOUT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (3, "", 2), done.stderr
    assert lines[0].startswith("brim: no GPU to check: ")
    assert lines[1] == "brim: exit 3 (not_ready)"
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - started < 30


@pytest.mark.gpu
def test_on_a_gpu_the_largest_batch_is_found_and_figures_stay_below_what_silicon_can_do(tmp_path: Path) -> None:
    if problem := host.probe("cuda").problem:
        pytest.skip(problem)
    plan = [
        copy(2**30),
        product(4096, "fp16"),
        network("test_resnet", "fp16", "nhwc"),
        network("test_resnet", "fp16", "nhwc", batch=2**26),  # 1.5 TB of input: fits nowhere
    ]
    result = run_part(QUIET, tmp_path, minutes=TIMEOUT_MINUTES, plan=plan, effort=QUICK)
    assert [entry.outcome for entry in result.entries] == ["ok", "ok", "ok", "oom"]
    by_name = {ceiling.what: ceiling.per_s for ceiling in result.ceilings}
    assert 10e9 < by_name["d2d"] < 50e12 and 1e12 < by_name["fp16"] < 1e16
    assert all(entry.gpu_uuid and entry.peak_bytes for entry in result.entries if entry.outcome == "ok")
