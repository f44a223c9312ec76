"""What works on which machine, which Python is taken, and what each make target needs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from brim import layout
from install import __main__ as entry
from install import pythons, setup
from install.facts import Facts
from install.layers import EXTRAS, TARGETS, resolved
from install.platform_check import PythonFacts, can, choose, platform_line, unfit_because

LINUX = Facts(system="Linux", machine="x86_64", glibc=(2, 36), nvidia_driver=False)
MAC = Facts(system="Darwin", machine="arm64", glibc=None, nvidia_driver=False)
ARM = Facts(system="Linux", machine="aarch64", glibc=(2, 39), nvidia_driver=True)
OLD = Facts(system="Linux", machine="x86_64", glibc=(2, 31), nvidia_driver=False)
MUSL = Facts(system="Linux", machine="x86_64", glibc=None, nvidia_driver=False)
UNFIT = {"macOS arm64": MAC, "Linux aarch64": ARM, "glibc 2.31, older than 2.35": OLD, "other than glibc": MUSL}


def python(version: tuple[int, int, int], *, venv: bool = True, libpython: bool = True) -> PythonFacts:
    name = f"python{version[0]}.{version[1]}"
    library = f"/usr/lib/lib{name}.so.1.0" if libpython else None
    return PythonFacts(command=name, version=version, executable=f"/usr/bin/{name}", has_venv=venv, libpython=library)


def must_not_run(*_: object, **__: object) -> list[PythonFacts]:
    raise AssertionError("nothing is looked for or set up where the target cannot work")


def test_a_linux_of_the_oldest_glibc_that_the_binaries_take_does_everything() -> None:
    oldest = Facts(system="Linux", machine="x86_64", glibc=(2, 35), nvidia_driver=False)
    assert platform_line(oldest) is None
    assert all(can(oldest, needs) for needs in TARGETS.values())


@pytest.mark.parametrize("reason", UNFIT)
def test_an_unfit_machine_is_told_why_what_works_and_what_does_not_in_one_line(reason: str) -> None:
    line = platform_line(UNFIT[reason])
    assert line is not None and reason in line and "\n" not in line
    assert "works here: analysis, and load to a remote server" in line
    assert "does not work here: export, serve, demo, test, bundle" in line


@pytest.mark.parametrize("facts", UNFIT.values(), ids=UNFIT)
def test_an_unfit_machine_goes_on_with_load_and_analysis_only(facts: Facts) -> None:
    goes_on = {name for name, needs in TARGETS.items() if can(facts, needs)}
    assert goes_on == {"loadtest-url", "analysis", "report", "status", "down", "doctor", "lock"}


def test_a_glibc_is_compared_by_number_and_not_by_letter() -> None:
    assert unfit_because(Facts(system="Linux", machine="x86_64", glibc=(2, 100), nvidia_driver=False)) is None


@pytest.mark.parametrize("target", ["demo", "export", "serve", "loadtest", "test", "bundle"])
def test_a_make_target_that_cannot_work_says_so_and_touches_nothing(
    target: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pythons, "candidates", must_not_run)
    assert entry.main(["ensure", "--for", target], machine=MAC) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == platform_line(MAC) and said[1].startswith(f"make {target} stops here")


def test_on_an_unfit_machine_the_platform_verb_only_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["platform"], machine=OLD) == 0
    assert capsys.readouterr().err.strip() == platform_line(OLD)


def test_a_whole_python_is_taken_before_a_newer_one_that_cannot_embed_the_server() -> None:
    chosen = choose([python((3, 13, 0)), python((3, 11, 9))])
    assert chosen.python is not None and chosen.python.version == (3, 11, 9)
    assert chosen.line is None


def test_a_missing_libpython_names_its_package_and_all_else_goes_on() -> None:
    chosen = choose([python((3, 12, 3), libpython=False)])
    assert chosen.python is not None and chosen.python.version == (3, 12, 3)
    assert chosen.line is not None and "install libpython3.12" in chosen.line and "\n" not in chosen.line


def test_python_313_alone_is_taken_and_the_line_says_which_the_embedded_server_needs() -> None:
    chosen = choose([python((3, 13, 0))])
    assert chosen.python is not None
    assert chosen.line is not None and "embedded server needs Python 3.11 or 3.12" in chosen.line


@pytest.mark.parametrize("target", ["serve", "demo"])
def test_python_313_alone_sets_no_embedded_server_up(
    target: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pythons, "candidates", lambda *_, **__: [python((3, 13, 0))])
    monkeypatch.setattr(setup, "ensure", must_not_run)
    assert entry.main(["ensure", "--for", target], machine=LINUX) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "embedded server needs Python 3.11 or 3.12" in line and "python3.13 is 3.13.0" in line


def test_a_python_without_venv_names_its_package() -> None:
    chosen = choose([python((3, 12, 3), venv=False), python((3, 9, 2))])
    assert chosen.python is None
    assert chosen.line is not None and "install python3.12-venv" in chosen.line


def test_a_python_with_venv_is_taken_before_one_without() -> None:
    chosen = choose([python((3, 12, 3), venv=False), python((3, 11, 2))])
    assert chosen.python is not None and chosen.python.version == (3, 11, 2) and chosen.line is None


@pytest.mark.parametrize("found", [[], [python((3, 9, 18))], [python((3, 14, 0))]])
def test_no_fit_python_is_one_line_that_names_what_to_install(found: list[PythonFacts]) -> None:
    chosen = choose(found)
    assert chosen.python is None
    assert chosen.line is not None and "install python3.12" in chosen.line and "\n" not in chosen.line


def test_a_shim_that_is_on_the_path_but_fails_is_no_python(tmp_path: Path) -> None:
    shim = tmp_path / "python3.12"
    shim.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n", "utf-8")
    shim.chmod(0o755)
    assert pythons.probe(str(shim)) is None
    assert pythons.probe(str(tmp_path / "absent")) is None


def test_what_is_no_python_but_answers_is_no_python_either() -> None:
    assert pythons.probe("echo") is None


def test_one_runtime_only_whatever_the_device() -> None:
    assert resolved(("load", "export"), "cpu") == ("export-cpu", "load")
    assert resolved(("load", "export"), "gpu") == ("export-gpu", "load")


def test_every_layer_that_a_target_names_exists() -> None:
    for needs in TARGETS.values():
        assert set(resolved(needs.layers, "cpu")) <= set(EXTRAS)
        assert set(resolved(needs.layers, "gpu")) <= set(EXTRAS)


def test_the_demo_and_the_load_host_need_no_torch() -> None:
    for target in ("demo", "serve", "loadtest", "loadtest-url"):
        assert "export" not in TARGETS[target].layers


@pytest.mark.parametrize(
    "module",
    ["install/__main__", "install/facts", "install/layers", "install/platform_check", "install/pythons", "brim/layout",
     "brim/machine"],
)  # fmt: skip
def test_what_runs_before_a_python_is_chosen_parses_on_python_38(module: str) -> None:
    source = (layout.CHECKOUT / f"{module}.py").read_text("utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    assert "annotations" in {
        name.name for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names
    }, "3.8 would evaluate the annotations"
