"""What stands on the command line of `brim loadtest`, checked and turned into a Request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from brim import guard
from brim.access import parse_headers
from brim.errors import InvalidRecord, UsageError
from brim.records import Access, Protocol, TargetLimit, Transport
from loadtest.plan import read_plan

if TYPE_CHECKING:
    from experiments.measure.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options as click read them."""

    concurrency: str | None
    starts: int
    senders: int
    items_per_request: int | None
    protocol: Protocol | None
    transport: str
    client: Literal["brim", "tritonclient"]
    gzip: bool
    channels: int
    shapes: tuple[str, ...]
    input_data: str | None
    model_version: str
    loads: Path | None
    tls_ca: str | None
    tls_cert: str | None
    tls_key: str | None
    headers: tuple[str, ...]
    allow_remote: tuple[str, ...]
    project: Path | None
    cross_check: bool | None
    master: str | None
    expect_workers: int | None
    worker: str | None
    rate: float | None
    arrivals: Literal["constant", "poisson", "gamma"] | None
    cv: float | None
    trace: Path | None
    speed_up: float | None
    seconds: float | None
    seed: int | None
    outstanding: int | None
    slo_ms: str | None
    percentile: float | None
    slo_seconds: float | None
    model_free: bool
    slo_only: bool
    overload: bool


def request_of(asked: Options, *, batch_id: str) -> Request:
    """The Request; UsageError names the option that does not fit."""
    from experiments.measure import rates  # the measuring modules: --help needs none of them
    from experiments.measure.request import Request

    plan = read_plan(asked.loads)
    concurrency, ladder = parse_concurrency(asked.concurrency)
    _refuse_without_effect(asked)
    if asked.master is not None:
        _refuse_with_master(asked)
    if (asked.master is None) != (asked.expect_workers is None):
        raise UsageError("--master and --expect-workers go together: --master 127.0.0.1:5557 --expect-workers 2")
    open_loop, slo = rates.open_loop(asked), rates.slo(asked)
    deadline_ms = 1e3 * plan.request_timeout_seconds
    if slo is not None and slo.limit_ms is not None and slo.limit_ms >= deadline_ms:
        raise UsageError(
            f"--slo-ms {slo.limit_ms:g}: a request is cut off after {deadline_ms:g} ms; raise request_timeout_seconds "
            "in a --loads file"
        )
    items_per_request = asked.items_per_request or plan.items_per_request
    if slo is not None and open_loop is None and items_per_request > 1:
        if asked.slo_only or asked.overload:
            raise UsageError(no_search(asked, items_per_request))
        slo = None  # which the caller says: the peak is worth having
    return Request(
        plan=plan,
        batch_id=batch_id,
        allowed=allowed_targets(asked.project, asked.allow_remote),
        access=access_of(asked),
        concurrency=concurrency,
        ladder=ladder,
        senders=asked.senders,
        items_per_request=items_per_request,
        input_data=asked.input_data,
        cross_check=asked.cross_check is not False,
        starts=asked.starts,
        client=asked.client,
        transport=cast(Transport, asked.transport.replace("-", "_")),
        compression="gzip" if asked.gzip else "none",
        channels=asked.channels,
        open_loop=open_loop,
        slo=slo,
        overload=asked.overload,
    )


def no_search(asked: Options, items_per_request: int) -> str:
    """Why no rate at an SLO is searched for."""
    return (
        f"no rate at the SLO: it is searched for with single items, and {asked.loads} says {items_per_request} in a "
        "request; add --items-per-request 1"
    )


def _refuse_without_effect(asked: Options) -> None:
    """An option that another one leaves without effect is refused, not ignored."""
    clock = "--rate" if asked.rate is not None else "--trace" if asked.trace is not None else ""
    shared = "" if asked.transport == "wire" else f"--transport {asked.transport}"
    only = "--slo-only" if asked.slo_only else ""
    constant = "--arrivals constant" if asked.arrivals == "constant" else ""
    search = "" if clock or asked.slo_ms is None else "--slo-ms"
    for option, given, beside, why in (
        ("--client tritonclient", asked.client == "tritonclient", shared, "sends over the wire"),
        ("--gzip", asked.gzip, shared, "has nothing to compress"),
        ("--concurrency", asked.concurrency is not None, clock, "is of a closed loop"),
        ("--concurrency", asked.concurrency is not None, only, "is of the peak, which is not measured"),
        ("--starts", asked.starts > 1, only, "is of the peak, which is not measured"),
        ("--cross-check", asked.cross_check is True, only, "is of the peak, which is not measured"),
        ("--cross-check", asked.cross_check is True, clock, "is of a closed loop"),
        ("--slo-seconds", asked.slo_seconds is not None, clock, "is of the search for a rate, and this one is given"),
        ("--seed", asked.seed is not None, constant, "is of random arrivals"),
        ("--items-per-request", (asked.items_per_request or 1) > 1, search, "is 1 in the search for a rate"),
    ):
        if given and beside:
            raise UsageError(f"{option} {why}: leave it or {beside} out")


def _refuse_with_master(asked: Options) -> None:
    """What workers on other hosts cannot do, before they are waited for."""
    if asked.transport != "wire":
        raise UsageError(f"--transport {asked.transport}: workers on other hosts share no memory with the server")
    if asked.client != "brim" or asked.protocol == "grpc":
        raise UsageError("--master drives HTTP with prepared bytes only; leave out --client and --protocol")
    if asked.headers or asked.tls_ca or asked.tls_cert:
        raise UsageError("--master: files of TLS and headers lie on this host, and the workers cannot read them yet")
    if asked.rate or asked.trace or asked.slo_ms:
        raise UsageError("--master: workers on other hosts keep requests in flight, they keep no rate; leave it out")
    if asked.senders != 1:
        raise UsageError("--senders: with --master each worker is a sender; say --expect-workers")


def access_of(asked: Options) -> Access:
    """TLS files and header files, as absolute paths."""
    try:
        return Access(
            tls_ca=_absolute(asked.tls_ca),
            tls_cert=_absolute(asked.tls_cert),
            tls_key=_absolute(asked.tls_key),
            headers=parse_headers(asked.headers),
        )
    except InvalidRecord as error:
        raise UsageError(f"--tls-cert, --tls-key: {error}") from None


def _absolute(file: str | None) -> str | None:
    return str(Path(file).expanduser().absolute()) if file else None


def parse_concurrency(text: str | None) -> tuple[int | None, tuple[int, int] | None]:
    """`8` is one point, `2:64` are bounds of the ladder."""
    if text is None:
        return None, None
    first, colon, last = text.partition(":")
    try:
        numbers = [_count(part) for part in ((first, last) if colon else (first,))]
    except ValueError:
        raise UsageError(f"--concurrency {text!r}: write N for one point, or FROM:TO for the ladder") from None
    if not colon:
        return numbers[0], None
    if numbers[0] > numbers[1]:
        raise UsageError(f"--concurrency {text}: the ladder would begin above its end; write {last}:{first}")
    return None, (numbers[0], numbers[1])


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 6 or int(text) < 1:
        raise ValueError(text)
    return int(text)


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`image:3,224,224` (commas or x) as (name, dimensions)."""
    name, colon, dims = text.rpartition(":")
    try:
        shape = tuple(int(d) for d in dims.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not colon or not name or not shape or min(shape) < 1:
        raise UsageError(f"--shape {text!r}: write NAME:DIMS, as in image:3,224,224")
    return name, shape


def allowed_targets(project: Path | None, allow_remote: Sequence[str]) -> dict[str, TargetLimit]:
    """The hosts that may be loaded: a project file's cap is never lifted by --allow-remote."""
    if project is not None and not project.exists():
        raise UsageError(f"--project {project}: there is no such file")
    named = {host.lower(): TargetLimit(host=host.lower()) for host in allow_remote}
    return named | guard.read_allowed(project or Path("brim.toml"))
