"""The page: what it says, what it never lets in, and that equal runs give equal bytes."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import tests.unit.finished_runs as made
from analysis import charts, finished, probes, report
from brim.records import Environment, Load, Saturation, Verdict

CANARY = "</script><img src=x onerror=alert(1)>"
RIGHT_TO_LEFT = "\u202e\u2067\u200f"


class Tags(HTMLParser):
    """Every element and attribute of a page, and its text outside of style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.pieces: list[str] = []
        self.feed(page)

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] != "style":
            self.pieces.append(data)


#: Of every size as many batches, up to the largest that a server here would form.
ALL_SIZES = {str(size): 10**6 for size in range(1, 1701)}


def page_of(out: Path, answer: Saturation | None, loads: tuple[Load, ...] = ()) -> str:
    folder = made.keep(out, made.run(), answer, loads)
    return made.write(out, [folder]).read_text("utf-8")


@pytest.fixture(scope="module")
def saturated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the run that most tests here read, and none changes."""
    out = tmp_path_factory.mktemp("saturated")
    return made.write(out, [made.keep(out, made.run(), made.answer())])


def test_the_page_says_what_was_found_and_what_to_think_of_it(saturated: Path) -> None:
    text = Tags(saturated.read_text("utf-8")).text
    for said in (
        "19.9 images/s SATURATED by engine",
        "busy 99%, batches 4.0 of 4",
        "95% interval over 3 starts of the server: 19.7 to 20.1 images/s.",
        "Of each start: 19.8, 19.9, 20.0.",
        "8 requests in flight over HTTP",
        "perf_analyzer 19.7 images/s (agrees, 1.1% apart)",
        "20.4 images/s; serving efficiency 0.975",
        "another sender changed nothing (+0.2%)",
        "your users' latency",
        "brim loadtest resnet50__b4 --starts 3",
        "AMD EPYC, 2 cores, 24 GiB, no GPU",
        "brim calibrate comes later",
    ):
        assert said in text, said


def test_an_interval_within_one_run_is_not_sold_as_one_over_starts(tmp_path: Path) -> None:
    text = Tags(page_of(tmp_path, made.answer(ci_kind="within_run", starts=1, start_means=(), probes=()))).text
    assert "Within this one run: 19.7 to 20.1 images/s" in text
    assert "interval over" not in text and "one was measured" in text


@pytest.mark.parametrize("verdict", [v for v in Verdict if v is not Verdict.SATURATED])
def test_no_figure_stands_without_its_verdict_and_what_it_is_not_valid_for(verdict: Verdict, tmp_path: Path) -> None:
    text = Tags(page_of(tmp_path, made.answer(verdict=verdict, limited_by="unknown", probes=()))).text
    assert verdict.value.upper() in text and "SATURATED" not in text
    assert "capacity: " in text


def test_each_chart_has_its_table_and_every_load_its_row(saturated: Path) -> None:
    page = saturated.read_text("utf-8")
    assert page.count("<svg") == 3
    rows = re.findall(r"<tr>.*?</tr>", page, re.DOTALL)
    assert sum("steady</span>" in row for row in rows) == len(made.LADDER)
    assert '<td class="n">4</td><td class="n">99.1%</td>' in page, "200 x 4 of 1 + 3 x 2 + 200 x 4 items"


def test_equal_runs_give_equal_bytes(saturated: Path, tmp_path: Path) -> None:
    again = report.write(tmp_path, [made.keep(tmp_path, made.run(), made.answer())])
    for name in ("report.html", "points.csv", "summary.json"):
        assert again.with_name(name).read_bytes() == saturated.with_name(name).read_bytes()


def hostile_answer() -> Saturation:
    bad = CANARY + RIGHT_TO_LEFT + "\x1b[31m" + "A" * 10_000
    probe = made.probe(0, 8, "figure", 20.0, reason=bad, batch_counts={"4": 3})
    checks = tuple(dataclasses.replace(check, reason=bad, name=bad) for check in made.checks())
    return made.answer(
        variant=bad, reasons=(bad, bad), item=bad, probes=(probe,), checks=checks, command=bad, target=bad,
        backend=bad, server_version=bad,
    )  # fmt: skip


def test_nothing_foreign_becomes_an_element_or_turns_the_text_around(tmp_path: Path) -> None:
    load = made.load(0, 8, "figure", 100, failed=1, sent=101, errors={CANARY + RIGHT_TO_LEFT: 1})
    bad = CANARY + RIGHT_TO_LEFT
    target = dataclasses.replace(made.TARGET, model=bad, url=bad, server_version=bad, item=bad)
    run = made.run(target=target, command=bad, environment=Environment(machine={bad: bad}, software={bad: bad}))
    page = made.write(tmp_path, [made.keep(tmp_path, run, hostile_answer(), (load,))]).read_text("utf-8")
    found = Tags(page)
    assert "script" not in found.tags and "img" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert not set(RIGHT_TO_LEFT + "\x1b") & set(page)
    assert found.text.count("</script><img src=x onerror=alert(1)>") > 10, "shown as the text that it is"
    assert "A" * 1001 not in page


def test_the_page_needs_nothing_but_itself(saturated: Path) -> None:
    page = saturated.read_text("utf-8")
    found = Tags(page)
    assert "link" not in found.tags and "script" not in found.tags and "iframe" not in found.tags
    for name, value in found.attributes:
        assert not value.startswith(("http:", "https:", "//", "data:")), (name, value)
        if name in ("href", "xlink:href", "src"):
            assert value.startswith("#")
    policy = next(value for name, value in found.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "url(http" not in page and "@import" not in page


def test_the_page_stays_small_however_large_the_run(tmp_path: Path) -> None:
    many = tuple(
        made.probe(i, 1 + i, "figure", 20.0, batch_counts={} if i else ALL_SIZES, reason="r" * 999) for i in range(320)
    )
    loads = tuple(made.load(i, 8, "figure", 10**6, errors={f"{i} {'e' * 999}": 10**6}) for i in range(100))
    page = page_of(tmp_path, made.answer(probes=many, max_batch=1700), loads)
    assert len(page) < 600_000
    assert f"{320 - report.MOST_ROWS} more are in points.csv" in page
    points = (tmp_path / "reports" / "latest" / "points.csv").read_text().splitlines()
    assert len(points) == 1 + 320


@pytest.mark.parametrize(
    "changes",
    [
        {"probes": (), "items_per_s": None, "ci95": None, "ci_kind": None, "latency_ms": None, "effective_batch": None,
         "queue_ms": None, "server_busy": None, "client_cpu_cores": None, "serving_efficiency": None,
         "cross_check": None, "checks": (), "reasons": (), "in_process_items_per_s": None},
        {"probes": (made.probe(0, 1, "search", 1e-9, ci95=None, latency_ms=None),)},
        {"probes": (made.probe(0, 1, "figure", 1e12, ci95=(0.0, 1e15), verdict="failing"),), "ci95": (0.0, 1e15),
         "max_batch": 0, "instances": 0},
        {"probes": tuple(made.probe(i, 2**i, "figure", i * 1e-3 + 1e-6, batch_counts={}) for i in range(20))},
    ],
)  # fmt: skip
def test_a_run_with_little_or_odd_in_it_has_a_page_all_the_same(changes: dict[str, object], tmp_path: Path) -> None:
    page = page_of(tmp_path, made.answer(**changes))
    assert "nan" not in Tags(page).text.lower().split() and "inf" not in Tags(page).text.lower().split()


def test_summary_has_each_answer_whole_and_a_schema_number(saturated: Path) -> None:
    found = json.loads((saturated.parents[1] / "latest" / "summary.json").read_text())
    assert found["schema"] == 1 and found["batch_ids"] == [made.BATCH]
    assert found["runs"][0]["answer"]["items_per_s"] == 19.9
    assert found["runs"][0]["status"] == "closed"


# ---------------------------------------------------------------------------- what the charts are drawn from


def test_shares_are_of_items_not_of_batches() -> None:
    figure = made.probe(0, 8, "figure", 20.0, batch_counts={"1": 4, "4": 1})
    assert probes.batch_shares([figure]) == {1: 0.5, 4: 0.5}
    assert probes.batch_shares([]) == {}


def test_time_is_split_so_that_the_parts_add_up_to_the_latency() -> None:
    (split,) = probes.splits([made.probe(0, 8, "search", 20.0), made.probe(1, 8, "cross_check", 10.0)])
    assert split.queue + split.engine + split.outside == pytest.approx(400.0)
    assert split.concurrency == 8 and split.outside == pytest.approx(2.0)


def test_a_large_batch_axis_is_put_into_ranges_that_hold_every_item() -> None:
    shares = probes.batch_shares([made.probe(0, 8, "figure", 20.0, batch_counts=ALL_SIZES)])
    with made.drawn_once():
        drawn = str(charts.batches(shares, 1700))
    assert ">1–43</text>" in drawn and len(re.findall("<path", drawn)) < 120


def test_an_older_run_is_shown_from_its_windows(tmp_path: Path) -> None:
    load = made.load(0, 8, "figure", 400)
    folder = made.keep(tmp_path, made.run(), None, (load,), (made.window(load, 200),))
    (probe,) = finished.read(folder).probes
    assert (probe.items_per_s, probe.effective_batch, probe.verdict) == (20.0, 4.0, "steady")
    assert (probe.queue_ms, probe.server_ms, probe.server_busy) == (100.0, 300.0, 0.8)
    assert probes.engine_ms(probe) == pytest.approx(200.0) and probes.outside_ms(probe) == pytest.approx(2.0)
    assert "stopped before it had an answer" in made.write(tmp_path, [folder]).read_text()
