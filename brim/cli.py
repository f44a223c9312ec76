"""The front door: a literal table of verbs; a stage's own parser is loaded only for its verb.

What every verb shares lives here too: --json, --quiet, -v, --out, signals, and errors turned into exit codes.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from brim import __version__, codec, disk, layout, say
from brim.errors import BrimError, Interrupted, did_you_mean
from brim.say import Say

#: verb -> (where its click command is, or None if a later version brings it; one line of help)
VERBS: dict[str, tuple[str | None, str]] = {
    "export": ("export.cli", "write models as ONNX, checked against torch"),
    "serve": ("serve.cli:serve", "start Triton on model variants, or show how to"),
    "status": ("serve.cli:status", "say what is served, what is ready and why not"),
    "down": ("serve.cli:down", "stop the server that Brim started"),
    "loadtest": ("experiments.measure.cli", "measure how many items per second a served model gives"),
    "demo": ("experiments.demo", "a first number from a small network, in two minutes, without torch"),
    "doctor": ("serve.cli:doctor", "look at this machine, one line a part, with its fix"),
    "gpu-check": ("experiments.gpu_check.cli", "figures of a GPU host that has only torch"),
    "bundle": ("install.cli", "one archive for a host without internet"),
    "calibrate": ("experiments.calibrate.cli", "measure servers of known capacity"),
    "fill": (None, "find the batch that fills the device"),
    "study": (None, "why low FLOPs is not fast, on this device"),
    "sweep": (None, "measure many serving configurations"),
    "compare": (None, "hold two runs against each other"),
    "plan": (None, "machines needed for a demand"),
    "report": ("analysis.cli", "make the report again from finished runs"),
}

EXIT_CODES = """\b
Exit codes: 0 good and valid; 1 a threshold failed; 2 usage or configuration; 3 target unreachable or not ready;
4 finished without a valid number; 5 server or worker lost; 6 resources; 7 inconclusive; 70 bug; 130, 143 signals."""


class FrontDoor(click.Group):
    """Lists verbs from the table and imports a stage only when its verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        where, help_line = VERBS[cmd_name]
        if where is None:
            return _not_built(cmd_name, help_line)
        module, _, name = where.partition(":")
        return getattr(importlib.import_module(module), name or "command")  # type: ignore[no-any-return]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(f"there is no verb {args[0]!r}; {did_you_mean(args[0], VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(v, h + ("" if where else " (not built yet)")) for v, (where, h) in VERBS.items()])


def _not_built(verb: str, help_line: str) -> click.Command:
    @click.command(verb, help=f"{help_line}. Not built yet.", context_settings={"ignore_unknown_options": True})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> int:
        raise click.UsageError(f"{verb} is not built yet; `brim --help` says what is")

    return command


@click.group(cls=FrontDoor, epilog=EXIT_CODES, context_settings={"max_content_width": 120})
@click.version_option(__version__, prog_name="brim")
def front_door() -> None:
    """How many images per second will this device really serve, and what limits it?"""


def verb(help_line: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function `(say, out, …) -> exit code or None` a verb with the options that every verb has."""

    def make(function: Callable[..., Any]) -> click.Command:
        def callback(as_json: bool, quiet: bool, verbose: bool, **rest: Any) -> Any:
            disk.refuse_file(rest["out"])
            return function(say=Say(json=as_json, quiet=quiet, verbose=verbose), **rest)

        parameters = list(getattr(function, "__click_params__", []))[::-1]
        shared = [
            click.Option(["--out"], type=click.Path(path_type=Path), default=layout.CHECKOUT / "out",
                         show_default="out/", help="Folder for everything that is written."),
            click.Option(["--json", "as_json"], is_flag=True, help="One JSON document on stdout."),
            click.Option(["--quiet", "-q"], is_flag=True, help="No progress."),
            click.Option(["-v", "--verbose"], is_flag=True, help="More detail; tracebacks of bugs."),
        ]  # fmt: skip
        name = function.__name__.replace("_", "-")
        return click.Command(name, callback=callback, params=[*parameters, *shared], help=help_line)

    return make


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command line and end the process with the contract's exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    code, word, message = _run(arguments)
    if message is not None and "--json" in arguments and not say.documents:
        with contextlib.suppress(OSError):
            print(codec.to_json({"error": message, "exit_code": code, "word": word}), flush=True)
    if code:
        print(f"brim: exit {code} ({word})", file=sys.stderr, flush=True)
    sys.exit(code)


class Outcome(Exception):
    """A command that ended without an error but not well, e.g. with verdict still_rising: code and word."""

    def __init__(self, code: int, word: str) -> None:
        super().__init__(word)
        self.code = code
        self.word = word


def _run(arguments: Sequence[str]) -> tuple[int, str, str | None]:
    """Exit code, its word, and the error's message if the command ended without its own document."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _first_signal)
    try:
        code = front_door.main(args=list(arguments), prog_name="brim", standalone_mode=False)
        return (code if isinstance(code, int) else 0), "failed", None
    except Outcome as outcome:
        return outcome.code, outcome.word, None
    except click.ClickException as error:
        return _told(" ".join(error.format_message().split()), 2, "usage")
    except BrimError as error:
        return _told(str(error), error.exit_code, error.word)
    except Interrupted as stopped:
        return stopped.exit_code, stopped.word, str(stopped)
    except (click.Abort, KeyboardInterrupt):
        return 130, "aborted", "stopped by a signal"
    except ModuleNotFoundError as missing:
        layer = f"`brim {arguments[0]}` needs the package {missing.name!r}, which is not installed here"
        return _told(f"{layer}; `make {arguments[0]}` installs what it needs", 2, "usage")
    except (BrokenPipeError, SystemExit):  # click turns the one into the other
        _forget_stdout()  # the reader left; what was measured is on disk
        return 0, "", None
    except OSError as error:
        if error.errno not in disk.NO_ROOM:
            return _bug(error, arguments)
        _forget_stdout()  # or what is still buffered would fail again at exit
        where = error.filename or "standard output"
        return _told(f"{where}: no room left ({error.strerror}); free some, or write elsewhere", 6, "resources")
    except Exception as error:  # the process boundary: a bug becomes one line and exit 70
        return _bug(error, arguments)


def _bug(error: Exception, arguments: Sequence[str]) -> tuple[int, str, str]:
    if {"-v", "--verbose"} & set(arguments):
        traceback.print_exc()
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(where.filename).name}:{where.lineno}"
    return _told(f"bug: {type(error).__name__} at {place}: {error}; run again with -v", 70, "bug")


def _forget_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _told(message: str, code: int, word: str) -> tuple[int, str, str]:
    message = " ".join(message.split())
    print(f"brim: {message}", file=sys.stderr, flush=True)
    return code, word, message


def _first_signal(signum: int, frame: FrameType | None) -> None:
    """First signal: stop in order (drain, write, release). Second: at once; children end with their parent."""
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, _second_signal)
    raise Interrupted(signum)


def _second_signal(signum: int, frame: FrameType | None) -> None:
    os._exit(128 + signum)
