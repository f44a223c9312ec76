"""`python3 -m install VERB`: the platform's line, then the set-up that a make target needs.

Reads: the machine. Writes: what install/setup.py writes. Parses on Python 3.8 and, where that is all that runs it,
starts itself again under the Python that it chose.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from brim.layout import CHECKOUT
from install import facts, platform_check, pythons
from install.layers import TARGETS


def main(argv: list[str] | None = None, machine: facts.Facts | None = None) -> int:
    """Exit code: 0 ready; 2 this target does not work here; 6 the set-up failed."""
    words = _parser().parse_args(argv)
    machine = machine or facts.gather()
    needs = TARGETS[words.target]
    line = platform_check.platform_line(machine)
    if line is not None:
        _say(line)
    if words.verb == "platform":
        return 0
    if not platform_check.can(machine, needs):
        _say(f"make {words.target.replace('-elsewhere', '')} stops here: it cannot work on this machine")
        return 2
    found = pythons.candidates(words.python or None, first=_present())
    choice = platform_check.choose(found)
    if choice.python is None:
        _say(choice.line or "no Python")
        return 2
    if choice.line is not None and platform_check.unfit_because(machine) is None:
        _say(choice.line)
        if needs.ability == "embedded":
            return 2
    if sys.version_info < (3, 11):  # noqa: UP036 -- this module alone runs on what make finds first
        again = [choice.python.executable, "-m", "install", *(argv if argv is not None else sys.argv[1:])]
        os.execv(again[0], again)
    device = "gpu" if machine.nvidia_driver else "cpu"
    if words.device not in (None, device):
        _say(
            f"this machine's device is {device}, the bundle is for {words.device}: make bundle ARGS='--device {device}'"
        )
        return 2
    return _act(words, choice.python, machine, device)


def _act(words: argparse.Namespace, python: platform_check.PythonFacts, machine: facts.Facts, device: str) -> int:
    # Only now, because from here on the modules need Python 3.11.
    from brim.errors import BrimError
    from install import locks, setup

    try:
        if words.verb == "lock":
            for path in locks.make_locks():
                print(path)
            return 0
        runs = platform_check.unfit_because(machine) is None
        setup.ensure(
            TARGETS[words.target], python, device=device, binaries_run=runs, system_site=words.system_site_packages
        )
    except BrimError as problem:
        _say(f"set-up: {problem}")
        return problem.exit_code
    except KeyboardInterrupt:
        _say("set-up: stopped; run make again, it goes on from there")
        return 130
    return 0


def _present() -> str | None:
    """The Python that the checkout's environment was made from, if it says so."""
    try:
        stamp = json.loads((CHECKOUT / ".venv" / "brim-setup.json").read_text("utf-8"))
        return str(stamp["python"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m install", description=__doc__)
    parser.add_argument("verb", choices=["platform", "ensure", "lock"])
    parser.add_argument("--for", dest="target", default="lock", choices=sorted(TARGETS), help="a make target")
    parser.add_argument("--python", default="", help="take this Python and no other")
    parser.add_argument("--device", choices=["cpu", "gpu"], help="stop if this machine has another device")
    parser.add_argument("--system-site-packages", action="store_true", help="build on the host's own packages")
    return parser


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
