"""The live line on a terminal made for the test: what it says, that the rest goes above it, and what stays behind."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from io import StringIO
from typing import TextIO

import pytest

from brim import layout
from brim.live import LiveLine, duration
from brim.say import Say

#: A command that shows the line, says something, and ends as asked.
COMMAND = """
import sys
from brim.say import Say
say = Say(quiet="quiet" in sys.argv)
with say.live() as update:
    update(0.25, "8 in flight")
    say.progress("[1] said above")
    if "fail" in sys.argv: raise ValueError("a bug")
    say.answer("the answer " + "word " * 20)
"""


class Terminal:
    """The other end of a pseudo-terminal: `written` is all that came so far."""

    def __init__(self, columns: int = 60) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(columns)
        self.stream: TextIO = os.fdopen(self.slave, "w", encoding="utf-8")
        self.written = ""

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def read(self) -> str:
        """What came since it was last asked for."""
        got = b""
        while select.select([self.master], [], [], 0.2)[0]:
            got += os.read(self.master, 65536)
        self.written += (text := got.decode())
        return text


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.stream.close()
    os.close(made.master)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_the_line_has_the_share_the_time_left_and_what_is_going_on(terminal: Terminal) -> None:
    clock = Clock()
    terminal.resize(120)
    line = LiveLine(terminal.stream, clock)
    line.update(0.0, "begins")
    assert "0%  time left unknown  begins" in plain(terminal.read())
    clock.now += 60  # a quarter took a minute, so three minutes are left
    line.update(0.25, "8 in flight,\n18.3 images/s")
    assert plain(terminal.read()).endswith(
        "━━━━━━──────────────────  25%  about 3 min left  8 in flight, 18.3 images/s"
    )


@pytest.mark.parametrize(
    ("seconds", "told"), [(1, "5 s"), (44, "45 s"), (95, "2 min"), (3540, "59 min"), (4800, "1 h 20 min")]
)
def test_time_left_is_as_fine_as_an_estimate_can_be(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_it_never_wraps_and_never_ends_a_line(terminal: Terminal) -> None:
    LiveLine(terminal.stream).update(0.5, "x" * 500)
    shown = plain(terminal.read())
    assert len(shown) == 57 and "\n" not in shown and "\r" not in shown


def test_it_is_drawn_ten_times_a_second_at_most(terminal: Terminal) -> None:
    clock = Clock()
    line = LiveLine(terminal.stream, clock)
    for step in range(100):
        clock.now += 0.01
        line.update(step / 100, f"step {step}")
    assert 9 <= plain(terminal.read()).count("step") <= 11


def test_after_the_window_has_shrunk_all_its_rows_are_taken_away(terminal: Terminal) -> None:
    line = LiveLine(terminal.stream)
    line.update(0.5, "x" * 500)  # 57 cells: three rows of 20
    terminal.read()
    terminal.resize(20)
    line.clear()
    assert terminal.read() == "\x1b[2A\r\x1b[J"


def test_no_color_is_honoured(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    LiveLine(terminal.stream).update(0.5, "text")
    assert not re.search(r"\x1b\[[0-9;]*3\dm", terminal.read())


def run(terminal: Terminal, *arguments: str, **environment: str) -> int:
    command = [sys.executable, "-c", COMMAND, *arguments]
    variables = {**os.environ, "TERM": "xterm-256color", **environment}
    done = subprocess.Popen(command, stdout=terminal.slave, stderr=terminal.slave, cwd=layout.CHECKOUT, env=variables)
    deadline = time.monotonic() + 60
    while done.poll() is None and time.monotonic() < deadline:
        terminal.read()
    terminal.read()
    return done.wait(1)


def screen(written: str) -> list[str]:
    """The lines that stay, as a terminal that knows `\\r` and `erase below` shows them."""
    text = re.sub(r"[^\n]*\r\x1b\[J", "", plain(written).replace("\r\n", "\n"))
    return text.split("\n")


def test_what_is_said_goes_above_the_line_and_nothing_of_the_line_stays(terminal: Terminal) -> None:
    assert run(terminal) == 0
    assert "8 in flight" in terminal.written
    lines = screen(terminal.written)
    assert lines[0] == "[1] said above"
    assert lines[1].startswith("the answer word") and len(lines[1]) <= 60 and lines[2].startswith("    word")
    assert lines[-1] == ""


def test_a_crash_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    before = termios.tcgetattr(terminal.slave)
    assert run(terminal, "fail") == 1
    assert termios.tcgetattr(terminal.slave) == before
    lines = screen(terminal.written)
    assert lines[:2] == ["[1] said above", "Traceback (most recent call last):"]
    assert not re.search(r"\x1b\[\?", terminal.written), "no mode was switched, so none is left on"


@pytest.mark.parametrize(("arguments", "term"), [((), "dumb"), ((), ""), (("quiet",), "xterm-256color")])
def test_a_dumb_terminal_and_quiet_get_plain_lines_alone(
    arguments: tuple[str, ...], term: str, terminal: Terminal
) -> None:
    assert run(terminal, *arguments, TERM=term) == 0
    assert "8 in flight" not in terminal.written and "\x1b" not in terminal.written
    assert ("[1] said above" in terminal.written) is (not arguments)


def test_a_pipe_gets_plain_lines_of_any_length(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", StringIO())
    say = Say()
    with say.live() as update:
        update(0.5, "never shown")
        say.answer("word " * 100)
    assert capsys.readouterr().out == "word " * 100 + "\n"
    assert isinstance(sys.stderr, StringIO) and sys.stderr.getvalue() == ""
