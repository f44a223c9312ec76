"""A browser opens the report: nothing is refused, nothing is asked from elsewhere, and there is something to see."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from matplotlib.image import imread

import tests.unit.finished_runs as made
from analysis import report
from tests.unit.test_report_page import hostile_answer

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed here"),
]


def browse(page: Path, home: Path, *asked: str) -> tuple[str, str]:
    """Output and log of a headless browser that opened the page without a network."""
    assert BROWSER is not None
    alone = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={home}")
    silent = ("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0")
    command = [BROWSER, *alone, *silent, *asked, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("hostile", [False, True])
def test_the_page_opens_without_a_word_on_the_console(hostile: bool, tmp_path: Path) -> None:
    answer = hostile_answer() if hostile else made.answer()
    page = report.write(tmp_path, [made.keep(tmp_path, made.run(), answer)])
    dom, log = browse(page, tmp_path / "home", "--dump-dom")
    assert "CONSOLE" not in log, [line for line in log.splitlines() if "CONSOLE" in line]
    assert dom.count("<svg") == (3 if not hostile else dom.count("</svg>"))
    assert "<script" not in dom and "<img" not in dom


def test_the_page_with_an_open_loop_a_rate_and_an_overload_opens_so_too(tmp_path: Path) -> None:
    load = made.open_load()
    folder = made.keep_open(tmp_path, load, made.open_rows(load.start_ns, outstanding=20), made.arrivals())
    page = report.write(tmp_path, [made.keep_rates(folder, made.slo_rate(), made.overload())])
    dom, log = browse(page, tmp_path / "home", "--dump-dom")
    assert "CONSOLE" not in log, [line for line in log.splitlines() if "CONSOLE" in line]
    assert dom.count("<svg") == dom.count("</svg>") >= 4
    assert "coordinated omission" in dom and "max_queue_size = 8" in dom


def test_the_console_tells_of_what_a_page_forbids_itself(tmp_path: Path) -> None:
    """Or the test above could not fail."""
    page = tmp_path / "broken.html"
    policy = "default-src 'none'"
    page.write_text(f'<meta http-equiv="Content-Security-Policy" content="{policy}"><script>1</script><p>here</p>')
    dom, log = browse(page, tmp_path / "home", "--dump-dom")
    assert "here" in dom and "CONSOLE" in log


@pytest.mark.parametrize(("scheme", "darkest", "brightest"), [(1, 0.8, 1.0), (0, 0.0, 0.3)], ids=["light", "dark"])
def test_the_page_follows_the_scheme_of_the_screen(
    scheme: int, darkest: float, brightest: float, tmp_path: Path
) -> None:
    page = report.write(tmp_path, [made.keep(tmp_path, made.run(), made.answer())])
    shot = tmp_path / "shot.png"
    browse(page, tmp_path / "home", f"--blink-settings=preferredColorScheme={scheme}", "--hide-scrollbars",
           "--window-size=700,1500", f"--screenshot={shot}")  # fmt: skip
    pixels = imread(shot)
    assert darkest < pixels[..., :3].mean() < brightest
    # The curve's own blue, light or dark, is there: the charts took the page's colours.
    blue = (0.0, 0x72 / 255, 0xB2 / 255) if scheme else (0x56 / 255, 0xB4 / 255, 0xE9 / 255)
    assert (abs(pixels[..., :3] - blue).max(axis=-1) < 0.02).sum() > 1000
