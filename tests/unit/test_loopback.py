"""The plain loopback copy that payload rates are held against."""

from __future__ import annotations

import sys
import time

import psutil
import pytest

from loadtest import loopback


def test_larger_pieces_are_copied_faster_and_no_sender_stays_behind() -> None:
    begin_s = time.monotonic()
    small, large = loopback.copy_rate(64), loopback.copy_rate(600_000)
    assert small is not None and large is not None
    assert 1e5 < small < large < 1e12
    assert time.monotonic() - begin_s < 20
    assert [c for c in psutil.Process().children() if "loadtest.loopback" in " ".join(c.cmdline())] == []


def test_a_sender_that_does_not_come_leaves_the_rate_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loopback, "CONNECT_S", 0.2)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert loopback.copy_rate(1000) is None
