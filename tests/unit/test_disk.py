"""What is on disk is whole, whatever happened while it was written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from brim import disk
from brim.errors import InvalidRecord, NoResource, NotReady


@dataclass(frozen=True, kw_only=True)
class Note:
    text: str


def test_a_saved_record_loads_equal_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    disk.save(tmp_path / "deep" / "note.json", Note(text="é\n"))
    assert disk.load(Note, tmp_path / "deep" / "note.json") == Note(text="é\n")
    assert os.listdir(tmp_path / "deep") == ["note.json"]


def test_a_missing_file_is_not_ready_and_broken_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="run the stage that writes it first"):
        disk.load(Note, tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InvalidRecord, match=r"bad\.json: not JSON"):
        disk.load(Note, tmp_path / "bad.json")


def test_a_last_line_that_a_kill_cut_off_is_left_out_and_any_other_is_not_forgiven(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    for text in ("one", "two"):
        disk.append(path, Note(text=text))
    whole = path.read_text()
    path.write_text(whole + '{"schema": 1, "te')
    assert disk.load_lines(Note, path) == [Note(text="one"), Note(text="two")]
    path.write_text('{"schema"\n' + whole)
    with pytest.raises(InvalidRecord, match=r"notes\.jsonl:1"):
        disk.load_lines(Note, path)


def test_a_file_where_a_folder_should_be_is_told_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(NoResource, match="out is a file, not a folder"):
        disk.save(tmp_path / "out" / "runs" / "x.json", Note(text=""))


def test_a_full_device_is_told_and_what_was_there_stays(tmp_path: Path) -> None:
    with pytest.raises(NoResource, match="no room left"):
        disk.append(Path("/dev/full"), Note(text="x"))
    disk.save(tmp_path / "note.json", Note(text="old"))
    code = (
        "import resource, sys; from pathlib import Path; from brim import disk; from brim.errors import NoResource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try: disk.save_text(Path(sys.argv[1]), 'x' * 1000)\n"
        "except NoResource as e: print(e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "note.json")], capture_output=True, text=True, check=True
    )
    assert "no room left" in done.stdout
    assert disk.load(Note, tmp_path / "note.json") == Note(text="old")
    assert os.listdir(tmp_path) == ["note.json"]


def test_a_lock_is_refused_while_held_and_free_again_after(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with disk.lock(path, "busy"), pytest.raises(NoResource, match="busy"), disk.lock(path, "busy"):
        pass
    with disk.lock(path, "busy"):
        pass


def test_another_process_is_refused_the_lock_until_the_one_that_holds_it_ends(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from brim import disk\n"
        "with disk.lock(Path(sys.argv[1]), 'busy'): print('held', flush=True); sys.stdin.read()"
    )
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(NoResource, match="busy"), disk.lock(path, "busy"):
            pass
        holder.kill()  # nothing is released in order: the kernel does it
        holder.wait()
        with disk.lock(path, "busy"):
            pass


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that every user may enter, as pytest's own is not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_lock_file_that_another_user_made_can_be_locked(shared_folder: Path) -> None:
    path, own = shared_folder / "lock", os.geteuid()
    mask = os.umask(0o077)  # the first user keeps everything private
    with disk.lock(path, "busy"):
        os.umask(mask)
    path.chmod(path.stat().st_mode & 0o444)  # to its own owner now as to any other user
    if own == 0:
        os.seteuid(65534)
    try:
        with disk.lock(path, "busy"), pytest.raises(NoResource, match="busy"), disk.lock(path, "busy"):
            pass
    finally:
        os.seteuid(own)
    with disk.lock(path, "busy"):
        pass


def test_a_lock_is_not_taken_through_a_link_that_somebody_laid(shared_folder: Path) -> None:
    (shared_folder / "precious").write_text("mine")
    (shared_folder / "lock").symlink_to(shared_folder / "precious")
    with pytest.raises(NoResource, match="lock"), disk.lock(shared_folder / "lock", "busy"):
        pass
    assert (shared_folder / "precious").read_text() == "mine"
