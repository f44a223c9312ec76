"""The verbs serve, status, down and doctor: parsers and short shells; what they decide is decided elsewhere.

Reads: out/models/, serve/configs.toml. Writes: model_repository/, out/servers/.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Any

import click

from brim import disk, guard, layout, machine
from brim.cli import Outcome, verb
from brim.errors import BrimError, NoResource, NotReady, UsageError, worst_exit
from brim.kserve import KServe
from brim.records import Server, TargetLimit, Variant
from brim.say import Say
from serve import choice, container, docker_engine, doctor_facts, embedded, host, ledger, prerequisites, readiness
from serve import doctor as judgement
from serve import remote as elsewhere
from serve.ports import Ports, pick
from serve.readiness import VariantState

if TYPE_CHECKING:
    from serve.variants import Built

_PORT = click.IntRange(1, 65535)
_EMBEDDED_WAIT_S = 300.0
_DOCKER_WAIT_S = 900.0  # a container that builds an engine while it loads takes minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The --json document of serve and status: a server, and each variant's state."""

    server: Server | None
    alive: bool
    variants: tuple[VariantState, ...]
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a `brim serve` on this machine asks for, apart from the variants."""

    out: Path
    repository: Path
    mode: host.Mode
    ports: Ports
    wait_s: float
    image: str
    run: bool
    replace: bool


def may_be_remote(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options by which a server that is not on this machine may be asked."""
    project = click.option("--project", type=click.Path(path_type=Path), default="brim.toml", show_default=True,
                           help="Project file with the allow-list.")  # fmt: skip
    allow = click.option("--allow-remote", multiple=True, metavar="HOST", help="Ask this host though not loopback.")
    return project(allow(function))


def _allowed(hosts: Sequence[str], project: Path) -> dict[str, TargetLimit]:
    return {**guard.read_allowed(project), **{name: TargetLimit(host=name) for name in hosts}}


# ---------------------------------------------------------------------------- serve


@verb("Start Triton on model variants, or show how to.")
@click.argument("models", nargs=-1)
@click.option("--config", "configs", multiple=True, metavar="NAME", help="Serving configuration; may be repeated.")
@click.option("--configs", "configs_file", type=click.Path(path_type=Path), help="Your own configs.toml.")
@click.option("--mode", type=click.Choice(["embedded", "docker", "remote"]), help="Default: what fits this machine.")
@click.option("--url", metavar="URL", help="The server of --mode remote.")
@click.option("--run", is_flag=True, help="With --mode docker: start the container instead of printing the command.")
@click.option("--image", default=container.IMAGE, show_default=True, help="With --mode docker: the image.")
@click.option("--http-port", type=_PORT, help="Default: a free one.")
@click.option("--grpc-port", type=_PORT, help="Default: a free one.")
@click.option("--metrics-port", type=_PORT, help="Default: a free one.")
@click.option("--wait", "wait_s", type=click.FloatRange(min=1), metavar="SECONDS", help="Longest wait until ready.")
@click.option("--replace", is_flag=True, help="Start anew even if the same is served already.")
@may_be_remote
def serve(
    say: Say,
    out: Path,
    models: tuple[str, ...],
    configs: tuple[str, ...],
    configs_file: Path | None,
    mode: host.Mode | None,
    url: str | None,
    run: bool,
    image: str,
    http_port: int | None,
    grpc_port: int | None,
    metrics_port: int | None,
    wait_s: float | None,
    replace: bool,
    allow_remote: tuple[str, ...],
    project: Path,
) -> int:
    """One `brim serve`."""
    chosen = mode or ("remote" if url else host.default_mode())
    if (url is not None) != (chosen == "remote"):
        raise UsageError("--url and --mode remote go together: brim serve --mode remote --url http://HOST:8000")
    disk.make_folder(layout.servers(out))
    with disk.lock(layout.servers(out) / "serve.lock", f"another brim serve is at work in {out}; wait for it"):
        if url is not None:
            return _serve_remote(say, out, url, models, _allowed(allow_remote, project))
        request = Request(
            out=out,
            repository=layout.model_repository(),
            mode=chosen,
            ports=Ports(http=http_port, grpc=grpc_port, metrics=metrics_port),
            wait_s=wait_s or (_DOCKER_WAIT_S if chosen == "docker" else _EMBEDDED_WAIT_S),
            image=image,
            run=run,
            replace=replace,
        )
        return _serve_here(say, request, models, configs, configs_file)


def _serve_remote(say: Say, out: Path, url: str, models: Sequence[str], allowed: Mapping[str, TargetLimit]) -> int:
    server, states = elsewhere.describe(url, models, allowed)
    _make_way(say, out, ledger.current(out), f"{url} takes its place")
    ledger.make_current(server, out)
    return _tell(say, Serving(server=server, alive=True, variants=states))


def _serve_here(
    say: Say, request: Request, models: Sequence[str], configs: Sequence[str], configs_file: Path | None
) -> int:
    from serve.variants import build_all, plan_variants  # half a second of protobuf, only where configs are written

    _sweep(say, request.out, request.repository)
    variants = plan_variants(models, configs, out=request.out, configs_file=configs_file, mode=request.mode)
    old = ledger.current(request.out)
    built = build_all(variants, out=request.out, repository=request.repository)
    changed = {
        name for name, why in built.failed.items() if isinstance(why, NoResource) and old and name in old.variants
    }
    if not built.good and not changed:
        raise next(iter(built.failed.values()))
    if request.mode == "docker" and not request.run:
        return _show_docker(say, request, built)
    if old is None:
        _preflight(request, built.good, None)
    else:
        reason = _why_new(old, request, built, changed)
        if reason is None:
            say.progress(f"{old.id} serves exactly this already, on {old.http}")
            return _tell(say, _look(old), built.failed)
        _preflight(request, built.good, old)
        _make_way(say, request.out, old, reason)
        built = build_all(variants, out=request.out, repository=request.repository)
    return _start(say, request, built)


def _why_new(old: Server, request: Request, built: Built, changed: Collection[str]) -> str | None:
    return choice.why_new(
        old,
        mode=request.mode,
        wanted={*built.names, *changed},
        changed=changed,
        ports=request.ports,
        states=_look(old).variants if ledger.is_ours(old) else None,
        replace=request.replace,
    )


def _sweep(say: Say, out: Path, repository: Path) -> list[str]:
    dead = ledger.sweep(out, repository)
    for server_id in dead:
        say.progress(f"{server_id} had ended without `brim down`: cleaned up after it")
    return dead


def _make_way(say: Say, out: Path, old: Server | None, reason: str) -> None:
    if old is not None:
        say.progress(f"{'forgetting' if old.mode == 'remote' else 'stopping'} {old.id}: {reason}")
        ledger.stop(old, out)


def _preflight(request: Request, variants: Sequence[Variant], old: Server | None) -> None:
    """Everything that can refuse a start is asked before a server that works is stopped."""
    pick(choice.besides(request.ports, old))
    if request.mode == "docker" and not docker_engine.answers():
        raise NotReady("no docker engine answers (`docker info` says why); start it, or use --mode embedded")
    if request.mode == "embedded":
        prerequisites.check()
        embedded.require_shared_memory(variants)


def _start(say: Say, request: Request, built: Built) -> int:
    if not built.good:
        raise next(iter(built.failed.values()))
    if request.mode == "docker":
        server = _run_docker(say, request, built)
    else:
        server = embedded.start(
            built.names,
            out=request.out,
            repository=request.repository,
            say=say,
            ports=request.ports,
            wait_s=request.wait_s,
        )
    return _tell(say, _look(server), built.failed)


def _docker_command(request: Request, names: Sequence[str], server_id: str) -> tuple[list[str], Any]:
    ports = pick(request.ports, container.INSIDE)
    command = container.argv(
        names,
        request.image,
        ports,
        machine.nvidia_driver_answers(),
        server_id=server_id,
        repository=request.repository.absolute(),
        user=container.this_user(),
    )
    return command, ports


def _show_docker(say: Say, request: Request, built: Built) -> int:
    command, _ = _docker_command(request, built.names, ledger.new_id())
    say.answer(join(command))
    say.document({"command": command})
    say.progress("nothing was started; --run starts it, `docker rm --force NAME` ends it if you start it by hand")
    return _tell_failed(say, built.failed)


def _run_docker(say: Say, request: Request, built: Built) -> Server:
    server_id = ledger.new_id()
    command, ports = _docker_command(request, built.names, server_id)
    return container.start(
        command,
        built.names,
        ports,
        server_id=server_id,
        out=request.out,
        repository=request.repository,
        say=say,
        wait_s=request.wait_s,
    )


# ---------------------------------------------------------------------------- telling


def _look(server: Server, allowed: Mapping[str, TargetLimit] | None = None) -> Serving:
    """Ask a server that answers for the state of each of its variants."""
    log = docker_engine.log_lines(server.container) if server.container else _log(server)
    index = KServe(server.http, allowed).repository_index()
    return Serving(server=server, alive=True, variants=readiness.states(index, server.variants, log))


def _log(server: Server) -> list[str]:
    return readiness.tail(Path(server.log)) if server.log else []


def _tell(say: Say, serving: Serving, failed: Mapping[str, BrimError] | None = None) -> int:
    """One line for the server and one a variant; 3 unless all is ready."""
    unbuilt = tuple(VariantState(name=n, ready=False, reason=str(e)) for n, e in (failed or {}).items())
    states = (*serving.variants, *unbuilt)
    if serving.server is not None:
        say.answer(
            f"{serving.server.id} ({serving.server.mode}, Triton {serving.server.version}) {serving.server.http}"
        )
    for state in states:
        say.answer(f"  {state.line}")
    say.document(Serving(server=serving.server, alive=serving.alive, variants=states, said=serving.said))
    if not all(state.ready for state in states):
        raise Outcome(3, "not_ready")
    return 0


def _tell_failed(say: Say, failed: Mapping[str, BrimError]) -> int:
    for name, error in failed.items():
        say.warn(f"{name}: {error}")
    if failed:
        raise Outcome(3, "not_ready")
    return 0


# ---------------------------------------------------------------------------- status, down, doctor


@verb("Say what is served, what is ready and why not.")
@may_be_remote
def status(say: Say, out: Path, allow_remote: tuple[str, ...], project: Path) -> int:
    """Exit 0 if every variant of the current server is ready, 3 otherwise."""
    allowed = _allowed(allow_remote, project)
    try:
        server = ledger.usable(out)
        serving = _look(server, allowed)
    except NotReady as problem:
        known = ledger.current(out)
        gone = tuple(VariantState(name=n, ready=False, reason="no server") for n in (known.variants if known else ()))
        running = known is not None and ledger.alive(known)
        say.document(Serving(server=known, alive=running, variants=gone, said=str(problem)))
        raise
    return _tell(say, serving)


@verb("Stop the server that Brim started.")
def down(say: Say, out: Path) -> int:
    """Stop what was started with this --out; a server that Brim did not start is only forgotten."""
    repository = layout.model_repository()
    dead = _sweep(say, out, repository)
    servers = ledger.started_from(out, repository)
    for server in servers:
        ledger.stop(server, out)
        say.answer(f"{server.id}: {'forgotten' if server.mode == 'remote' else 'stopped'}")
    if not servers:
        say.answer("nothing is running")
    say.document({"stopped": [server.id for server in servers], "cleaned_up": dead})
    return 0


@verb("Look at this machine, one line a part, with its fix.")
def doctor(say: Say, out: Path) -> int:
    """Exit 0 if what this machine can do works, 6 if a resource is short, 3 if something is not set up."""
    findings = judgement.judge(doctor_facts.gather(out))
    for finding in findings:
        say.answer(finding.line)
    say.document({"findings": findings})
    code = worst_exit(finding.exit_code for finding in findings)
    if code:
        raise Outcome(code, "resources" if code == NoResource.exit_code else "not_ready")
    return 0
