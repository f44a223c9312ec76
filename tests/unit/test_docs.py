"""The documentation held against the code, and the tracked files against what must not be published."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import click
import pytest

from brim.cli import VERBS, front_door
from brim.errors import EXIT_PRECEDENCE
from brim.records import ServingConfig, Status, TargetLimit, Verdict
from export.recipes import Recipe
from loadtest.plan import LoadPlan
from serve.known import KINDS

CHECKOUT = Path(__file__).resolve().parents[2]
REFERENCE = (CHECKOUT / "docs" / "reference.md").read_text("utf-8")
PAGES = [
    *(CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(CHECKOUT / folder / "README.md" for folder in ("docker", "model_repository")),
    *sorted((CHECKOUT / "docs").rglob("*.md")),
]
MAKEFILE = (CHECKOUT / "Makefile").read_text("utf-8")
TARGETS = re.findall(r"^## (\S+)", MAKEFILE, re.MULTILINE)
BUILT = [name for name, (where, _) in VERBS.items() if where is not None]
#: What each table's keys are, by the record behind it (its name, and the host, stand in the table's head).
TABLES = {
    "models.toml": (Recipe, "name"),
    "configs.toml": (ServingConfig, "name"),
    "loads.toml": (LoadPlan, ""),
    "brim.toml": (TargetLimit, "host"),
}
#: Folders that only exist once something ran.
GENERATED = ("out/", ".venv/", ".tools/", "model_repository/")


def section(heading: str) -> str:
    """What stands under a heading of the reference, up to the next of its rank or a higher one."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", REFERENCE, re.MULTILINE)
    assert found, f"docs/reference.md has no section {heading!r}"
    rest = REFERENCE[found.end() :]
    following = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: following.start()] if following else rest


def first_cells(text: str) -> str:
    """The first column of every table."""
    return "\n".join(row.split("|")[1] for row in text.splitlines() if row.startswith("|"))


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))


def verb(name: str) -> click.Command:
    command = front_door.get_command(click.Context(front_door), name)
    assert command is not None
    return command


def options(command: click.Command) -> set[str]:
    found = [p for p in command.params if isinstance(p, click.Option)]
    return {spelled for option in found for spelled in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("name", BUILT)
def test_the_reference_has_exactly_the_options_of_a_verb(name: str) -> None:
    shared = flags(first_cells(section("Every verb"))) - {"--help"}
    assert shared <= options(verb(name))
    assert flags(first_cells(section(f"brim {name}"))) == options(verb(name)) - shared


def test_verbs_that_are_not_built_are_named_as_such() -> None:
    told = re.search(r"^Not built yet: (.*?);", REFERENCE, re.MULTILINE)
    assert told and set(re.findall(r"`([\w-]+)`", told[1])) == set(VERBS) - set(BUILT)


@pytest.mark.parametrize("target", TARGETS)
def test_the_reference_has_every_make_target(target: str) -> None:
    assert f"`make {target}`" in first_cells(section("Make"))


def test_every_make_target_is_listed_by_make_help() -> None:
    phony = re.findall(r"^\.PHONY:(.*)$", MAKEFILE, re.MULTILINE)
    assert set(" ".join(phony).split()) == set(TARGETS)


def test_the_reference_has_exactly_the_variables_that_the_makefile_reads() -> None:
    own = set(re.findall(r"^([A-Z]+) :?=", MAKEFILE, re.MULTILINE))
    read = {name for name in re.findall(r"\$\(([A-Z]+)\)", MAKEFILE) if not name.startswith("MAKE")} - own
    assert set(re.findall(r"`([A-Z]+)`", first_cells(section("Make")))) == read


@pytest.mark.parametrize("table", TABLES)
def test_the_reference_has_exactly_the_keys_of_a_table(table: str) -> None:
    record, head = TABLES[table]
    keys = {field.name for field in dataclasses.fields(record)} - {head}
    assert set(re.findall(r"`(\w+)`", first_cells(section(table)))) == keys


def test_the_reference_has_exactly_the_known_servers_with_their_parameters_and_defaults() -> None:
    told = {}
    for row in section("Known servers").splitlines():
        if row.startswith("| `"):
            _, kind, parameters, *_ = row.split("|")
            defaults = re.findall(r"`(\w+)`[^`(]*\((\d+)\)", parameters)
            told[kind.strip(" `")] = {name: float(default) for name, default in defaults}
    shared = {"elements": 16.0}  # stands in the text above the table for all but `image`, which has none
    assert {kind: told[kind] | (shared if kind != "image" else {}) for kind in told} == KINDS


def test_the_reference_has_exactly_the_options_of_the_plain_locustfile() -> None:
    # Read, not imported: Locust patches the sockets of the process that imports it.
    source = (CHECKOUT / "loadtest" / "senders" / "locust_http.py").read_text("utf-8")
    declared = set(re.findall(r'add_argument\("(--[\w-]+)"', source))
    assert declared and flags(first_cells(section("The plain locustfile"))) == declared


def test_the_reference_has_exactly_the_exit_codes_in_their_order() -> None:
    text = section("Exit codes")
    assert set(re.findall(r"^\| (\d+) \|", text, re.MULTILINE)) == {str(code) for code in EXIT_PRECEDENCE}
    assert ", ".join(str(code) for code in EXIT_PRECEDENCE) in " ".join(text.split())


def test_the_readme_has_every_exit_code() -> None:
    told = re.search(r"Exit codes: (.*?)\. ", " ".join((CHECKOUT / "README.md").read_text("utf-8").split()))
    assert told and set(re.findall(r"\b\d+\b", told[1])) == {str(code) for code in EXIT_PRECEDENCE}


def test_the_reference_has_exactly_the_verdicts_and_marks_the_usable_ones() -> None:
    rows = re.findall(r"^\|(.*?)\| `(\w+)` \|", section("Verdicts"), re.MULTILINE)
    assert {name for _, name in rows} == {str(v) for v in Verdict}
    assert {name for usable, name in rows if usable.strip()} == {"saturated", "point"}


def test_the_reference_numbers_the_ends_of_a_request_as_the_rows_do() -> None:
    told = re.search(r"^`status` of a request: (.*)\.$", REFERENCE, re.MULTILINE)
    assert told and told[1] == ", ".join(f"{s.value} {s.name.lower().replace('_', ' ')}" for s in Status)


# ---------------------------------------------------------------------------- links and paths


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(CHECKOUT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{page}: {link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{page}: {link} names no heading"


def published() -> list[str]:
    """The files that are tracked, or will be with the next commit."""
    if not (CHECKOUT / ".git").exists():
        pytest.skip("not a clone: what would be published is not known")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if name and (CHECKOUT / name).is_file()]
    assert "README.md" in names
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(CHECKOUT).as_posix())
def test_every_file_of_the_checkout_that_a_page_mentions_exists(page: Path) -> None:
    folders = {name.split("/")[0] for name in published() if "/" in name}
    tops = "|".join(re.escape(folder) for folder in sorted(folders))
    mentioned = re.findall(rf"(?<![\w./<>-])((?:{tops})/[\w./-]*)(?![\w<*{{])", page.read_text("utf-8"))
    files = {path.rstrip(".") for path in mentioned if not path.startswith(GENERATED)}
    missing = sorted(path for path in files if not (CHECKOUT / path).exists())
    assert not missing


# ---------------------------------------------------------------------------- what must not be published

#: Joined by dots and slashes; in parts, so that this file does not hold what it looks for.
UNWANTED: dict[str, list[tuple[str, ...]]] = {
    "the host of a package registry": [
        ("pypi", "org"), ("pythonhosted", "org"), ("pypi", "nvidia", "com"), ("pypi", "ngc", "nvidia", "com"),
        ("download", "pytorch", "org"), ("conda", "anaconda", "org"), ("registry", "npmjs", "org"),
    ],
    "a path of a developer's machine": [
        ("", "work", ""), ("", "root", ""), ("", "Users", ""), ("", "tmp", "dev"), ("pyenv", "versions"),
    ],
}  # fmt: skip
BINARY_SUFFIXES = {
    ".onnx", ".plan", ".pt", ".pth", ".safetensors", ".so", ".a", ".o", ".pyc", ".whl", ".tar", ".gz", ".zip", ".npy",
    ".npz", ".parquet", ".bin", ".pkl",
}  # fmt: skip


@pytest.mark.parametrize("what", UNWANTED)
def test_no_tracked_file_holds(what: str) -> None:
    joint = "/" if "path" in what else "."
    words = [joint.join(parts) for parts in UNWANTED[what]]
    texts = ((name, (CHECKOUT / name).read_text("utf-8", errors="replace")) for name in published())
    assert not [f"{name}: {word}" for name, text in texts for word in words if word in text]


#: Papers of its making that no reader has; cut in two for the same reason.
PAPERS = [("DES", "IGN"), ("MET", "HOD"), ("PE", "ERS"), ("STA", "CK"), ("FAU", "LTS"), ("STY", "LE"), ("U", "X")]


def test_no_tracked_file_refers_to_a_paper_that_is_not_here() -> None:
    names = "|".join("".join(parts) for parts in PAPERS)
    reference = re.compile(rf"\b(?:{names})(?:\.md\b|'s\b| \d)")
    texts = ((name, (CHECKOUT / name).read_text("utf-8", errors="replace")) for name in published())
    assert not [f"{name}: {found[0]}" for name, text in texts if (found := reference.search(text))]


def test_no_tracked_file_is_a_generated_binary() -> None:
    names = published()
    assert not [name for name in names if Path(name).suffix in BINARY_SUFFIXES]
    assert not [name for name in names if b"\0" in (CHECKOUT / name).read_bytes()]
