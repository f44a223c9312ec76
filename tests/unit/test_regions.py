"""Regions in shared memory: where tensors lie, whose a file is, how much room there must be."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from brim import guard, layout
from brim.errors import NoResource, NotReady, UsageError
from brim.kserve import MemoryKind
from brim.records import Target, TargetLimit, Tensor
from loadtest import payload, prepared, regions, request_bytes


@dataclass
class FakeControl:
    """A server's register of shared memory; it maps what lies in `folder`, and keeps a region while it is `busy`."""

    folder: Path
    endpoint: guard.Endpoint = field(default_factory=lambda: guard.parse_url("http://127.0.0.1:8000"))
    known: dict[MemoryKind, dict[str, Mapping[str, Any]]] = field(default_factory=lambda: {"system": {}, "cuda": {}})
    busy: int = 0
    gone: bool = False

    def shared_memory(self, kind: MemoryKind) -> list[str]:
        self._answer()
        return list(self.known[kind])

    def register_shared_memory(self, kind: MemoryKind, name: str, about: Mapping[str, Any]) -> None:
        self._answer()
        if not (self.folder / about["key"].strip("/")).exists():
            raise NotReady("Unable to open shared memory region")
        self.known[kind][name] = about

    def unregister_shared_memory(self, kind: MemoryKind, name: str) -> None:
        self._answer()
        if self.busy:
            self.busy -= 1
            raise NotReady("it is currently in use")
        self.known[kind].pop(name, None)

    def _answer(self) -> None:
        if self.gone:
            raise NotReady("does not answer")


@pytest.fixture
def control(tmp_path: Path) -> Any:
    return FakeControl(tmp_path)


@pytest.fixture
def memory(control: Any, tmp_path: Path) -> Iterator[regions.Memory]:
    with opened(control, tmp_path) as memory:
        yield memory


def opened(control: Any, folder: Path, run: str = "run") -> Any:
    return regions.opened("shared_memory", control, run, {}, folder=folder)


def leftover(folder: Path, run: str) -> str:
    """What a killed run leaves behind: a file that nobody holds locked."""
    name = regions.new_name(run)
    (folder / name).write_bytes(b"left")
    return name


def test_tensors_share_no_cache_line_and_a_region_is_never_empty() -> None:
    assert regions.layout(iter([1, 64, 65, 0, 8])) == ([0, 64, 128, 256, 256], 320)
    assert regions.layout(iter([])) == ([], 64)


def test_a_region_holds_the_tensors_where_its_parts_say_and_is_registered_by_its_key(
    memory: regions.Memory, control: Any, tmp_path: Path
) -> None:
    tensors = [b"one", b"", b"x" * 100, b"four"]
    region, parts = memory.hold(tensors)
    data = (tmp_path / region.name).read_bytes()
    assert [data[p.offset : p.offset + p.byte_size] for p in parts] == tensors
    assert {p.region for p in parts} == {region.name}
    assert region.name.startswith("brim-inputs-run-")
    assert len(data) == region.byte_size
    about = {"key": f"/{region.name}", "offset": 0, "byte_size": region.byte_size}
    assert control.known == {"system": {region.name: about}, "cuda": {}}
    assert (tmp_path / region.name).stat().st_mode & 0o777 == 0o600


def test_two_pools_of_one_run_lie_in_two_regions_and_both_are_gone_at_its_end(control: Any, tmp_path: Path) -> None:
    with opened(control, tmp_path) as memory:
        first, second = memory.hold([b"a"])[0], memory.hold([b"b"])[0]
        assert sorted(control.known["system"]) == sorted([first.name, second.name])
    assert control.known["system"] == {}
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_made_on_the_wire(control: Any, tmp_path: Path) -> None:
    with regions.opened("wire", control, "run", {}, folder=tmp_path) as memory:
        assert memory is None


@pytest.mark.parametrize("error", [NotReady("gone"), UsageError("token.txt does not exist"), RuntimeError("a bug")])
def test_every_region_is_freed_whatever_asking_the_server_raises(
    memory: regions.Memory, control: Any, tmp_path: Path, error: Exception
) -> None:
    def refuse(kind: str, name: str) -> None:
        raise error

    memory.hold([b"a"])
    memory.hold([b"b"])
    control.unregister_shared_memory = refuse
    control.known["system"].clear()
    with contextlib.suppress(RuntimeError):
        memory.release()
    assert list(tmp_path.iterdir()) == []


def test_what_a_server_forgot_is_registered_again(memory: regions.Memory, control: Any) -> None:
    assert memory.ensure_registered() == []
    region, _ = memory.hold([b"a"])
    assert memory.ensure_registered() == []
    control.known["system"].clear()
    assert memory.ensure_registered() == [region.name]
    assert list(control.known["system"]) == [region.name]


def test_a_region_in_use_is_asked_for_again_until_it_is_free(control: Any, tmp_path: Path) -> None:
    with opened(control, tmp_path) as memory:
        memory.hold([b"a"])
        control.busy = 2
    assert control.known["system"] == {}


@pytest.mark.parametrize("how", ["gone", "busy"])
def test_a_server_that_does_not_let_go_keeps_no_file_and_is_swept_the_next_time(
    control: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(regions, "RELEASE_WITHIN_S", 0.0)
    with opened(control, tmp_path) as memory:
        region, _ = memory.hold([b"a"])
        control.gone, control.busy = how == "gone", 1 if how == "busy" else 0
    control.gone = False
    assert list(tmp_path.iterdir()) == []
    assert list(control.known["system"]) == [region.name]
    assert regions.sweep_server(control, tmp_path) == [region.name]
    assert control.known["system"] == {}


def test_a_server_that_does_not_see_the_segment_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(NotReady, match="Unable to open.*--allow-client-shm=true.*--transport wire") as refused:  # noqa: SIM117
        with opened(FakeControl(elsewhere), tmp_path) as memory:
            memory.hold([b"a"])
    assert "\n" not in str(refused.value)
    assert [file.name for file in tmp_path.iterdir()] == ["elsewhere"]


def test_shared_memory_needs_a_server_on_this_machine(tmp_path: Path) -> None:
    far: Any = FakeControl(tmp_path, endpoint=guard.parse_url("http://192.0.2.1:8000"))
    allowed = {"192.0.2.1": TargetLimit(host="192.0.2.1")}
    with pytest.raises(UsageError, match="192.0.2.1, not this machine.*--transport wire"):  # noqa: SIM117
        with regions.opened("shared_memory", far, "run", allowed, folder=tmp_path):
            pass


def test_too_little_room_is_told_in_numbers_before_anything_is_made(
    memory: regions.Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_bavail=3, f_frsize=2**20))
    memory.hold([bytes(3 * 2**20)])
    with pytest.raises(NoResource, match=r"has 3\.0 MiB left, .* need 4\.0; .*--shm-size") as refused:
        memory.hold([bytes(2**22)])
    assert refused.value.exit_code == 6
    assert len(list(tmp_path.iterdir())) == 1


def test_room_that_another_takes_meanwhile_is_missed_in_the_same_words(
    memory: regions.Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(NoResource, match=r"no room left, the inputs in shared memory need 1\.0"):
        memory.hold([bytes(2**20)])
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------- leftovers


def test_a_sweep_takes_what_the_dead_left_and_nothing_else(memory: regions.Memory, tmp_path: Path) -> None:
    region, _ = memory.hold([b"ours"])
    left = leftover(tmp_path, "dead")
    for name in ("brim-20261122t173000z-abcdef-shm", "somebody-elses", "brim"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / f"{regions.PREFIX}link").symlink_to(tmp_path / "somebody-elses")
    assert regions.sweep(tmp_path) == [left]
    kept = {"brim-20261122t173000z-abcdef-shm", "somebody-elses", "brim", f"{regions.PREFIX}link", region.name}
    assert {file.name for file in tmp_path.iterdir()} == kept


def test_the_lock_of_a_killed_owner_is_gone_though_its_file_stays(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from loadtest.regions import SystemSegment, new_name
name = new_name("killed")
SystemSegment(Path({str(tmp_path)!r}), name, 64)
print(name, flush=True)
input()
os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=layout.CHECKOUT
    ) as owner:
        assert owner.stdout is not None
        name = owner.stdout.readline().strip()
        assert regions.sweep(tmp_path) == []
        owner.communicate("\n", timeout=20)
    assert (tmp_path / name).exists()
    assert regions.sweep(tmp_path) == [name]
    assert list(tmp_path.iterdir()) == []


def test_the_next_run_sweeps_what_the_dead_left_here_and_on_the_server_though_it_sends_over_the_wire(
    control: Any, tmp_path: Path
) -> None:
    dead = [leftover(tmp_path, "dead"), regions.new_name("dead-and-swept")]
    control.known["system"] = {name: {} for name in (*dead, "input_of_somebody")}
    control.known["cuda"] = {regions.new_name("dead-on-the-gpu"): {}}
    with opened(control, tmp_path) as memory:
        region, _ = memory.hold([b"a"])
        control.known["system"][regions.new_name("dead")] = {}
        with regions.opened("wire", control, "run", {}, folder=tmp_path):
            assert sorted(control.known["system"]) == sorted(["input_of_somebody", region.name])
        assert control.known["cuda"] == {}
        assert [file.name for file in tmp_path.iterdir()] == [region.name]


def test_a_server_with_a_memory_of_its_own_keeps_the_regions_that_live_there(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    control: Any = FakeControl(theirs)
    with opened(control, theirs) as memory:
        region, _ = memory.hold([b"a"])
        assert regions.sweep_server(control, ours) == []
        assert list(control.known["system"]) == [region.name]
    assert list(ours.iterdir()) == []


# ---------------------------------------------------------------------------- payloads


def image_target(dtype: str) -> Target:
    return Target(
        url="http://127.0.0.1:8000", model="m", version="", max_batch=8, instances=1, server_name="", server_version="",
        inputs=(Tensor(name="x", dtype=dtype, shape=(3,)), Tensor(name="ids", dtype="INT64", shape=(1,))),
        outputs=(Tensor(name="y", dtype="FP32", shape=(1,)),),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["FP32", "FP16", "UINT8", "BYTES"])
def test_requests_name_the_places_of_the_very_inputs_that_were_kept(
    memory: regions.Memory, tmp_path: Path, dtype: str
) -> None:
    folder = payload.prepare(
        image_target(dtype), tmp_path / "payload", items_per_request=5, input_data=None, seed=3, pool=4, memory=memory
    )
    made = prepared.load(folder)
    [region] = made.regions
    data = (tmp_path / region.name).read_bytes()
    for number, member in enumerate(made.members):
        request = (folder / member.request).read_bytes()
        head, _, body = request.partition(b"\r\n\r\n")
        assert b"Inference-Header-Content-Length: %d\r\n" % len(body) in head  # nothing but JSON in the body
        kept = payload.read_inputs(folder, number)
        for entry in json.loads(body)["inputs"]:
            told = entry["parameters"]
            at = told.get("shared_memory_offset", 0)
            assert told["shared_memory_region"] == region.name
            assert data[at : at + told["shared_memory_byte_size"]] == request_bytes.wire(
                kept[entry["name"]], entry["datatype"]
            )
        assert len(request) <= made.request_bytes < 700
