"""Networks: the rate at the SLO that Brim finds, then long loads a little below it and a little above.

The one below must meet the SLO, the one above must not; both are judged by the raw records.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from benchmarks.served import Served
from benchmarks.truth.journal import Book, Line, told
from benchmarks.truth.loads import brim_loadtest, fresh, poisson_load
from brim import disk, layout
from brim.errors import Lost, NotReady
from brim.records import ModelCard, ServingConfig, Slo, SloRate, Variant
from export.small import Layer, Network, export_small
from judging.slo_observed import Observed, latencies
from serve.configs import resolve

#: A third of the demo's multiplications.
SMALL = Network(
    name="small",
    size=64,
    layers=(
        Layer(channels=32, stride=2),
        Layer(channels=64, stride=1),
        Layer(channels=128, stride=2),
        Layer(channels=128, stride=1),
        Layer(channels=128, stride=1),
    ),
)
LEAST_PER_S = 200.0
SMALL_S, AROUND = 300.0, (0.95, 1.05)
RESNET_S, BELOW, ABOVE = 600.0, 0.85, 1.15
#: Of a search: a network scatters, and where the queueing model is rejected, a minute is too little for the data alone.
SEARCH_S = 180.0
#: A machine whose own speed changes from one trial to the next resolves nothing; then it is searched once more. A third
#: search would leave nothing of the 20 minutes that a part may take.
SEARCHES = 2
SEED = 21


def run_small(book: Book) -> None:
    """A network of some hundred images a second on a thread of a CPU."""
    with served_small(book) as on:
        found = _search(book, on)
        book.add(*_headline(SMALL.name, found), fast_enough(found.capacity_items_per_s))
        for number, share in enumerate(AROUND):
            book.add(_held(on, found, share, book.scaled(SMALL_S), SEED + number))


@contextlib.contextmanager
def served_small(book: Book) -> Iterator[Served]:
    """The network on a server of its own."""
    models = book.folder / "exported"
    with fresh(_variant(export_small(models, SMALL), 8), book.folder / "served", models) as on:
        yield on


def fast_enough(capacity: float | None) -> Line:
    """The bounds were set for a network of so many images a second."""
    return Line(
        what=f"{SMALL.name}: capacity", bound=f"at least {LEAST_PER_S:g}/s", measured=f"{capacity or 0:.4g}/s",
        held=(capacity or 0.0) >= LEAST_PER_S,
    )  # fmt: skip


def run_resnet_below(book: Book) -> None:
    """ResNet-50 at p95: the search, and below its answer."""
    card = _resnet(book)
    with fresh(_variant(card, 4), book.folder, book.out) as on:
        found = _search(book, on, "--percentile", "95")
        book.add(*_headline("resnet50", found))
        assert found.items_per_s is not None  # else the search was lost
        book.keep(rate=found.items_per_s, limit_ms=found.slo.limit_ms)
        book.add(_held(on, found, BELOW, book.scaled(RESNET_S), SEED))


def run_resnet_above(book: Book) -> None:
    """And above it, on a server of its own."""
    card = _resnet(book)
    kept = book.earlier("resnet-below")
    slo = Slo(limit_ms=kept["limit_ms"], percentile=95.0)
    found = SloRate(slo=slo, items_per_s=kept["rate"], ci95=None, given="model", verdict="resolved")
    with fresh(_variant(card, 4), book.folder, book.out) as on:
        book.add(_held(on, found, ABOVE, book.scaled(RESNET_S), SEED))


def _search(book: Book, on: Served, *asked: str) -> SloRate:
    words = ("--slo-ms", "auto", "--slo-only", "--slo-seconds", f"{SEARCH_S:g}", *asked)
    for _ in range(SEARCHES):
        found = disk.load(SloRate, brim_loadtest(on, *words) / "slo.json")
        if found.items_per_s is not None and found.verdict == "resolved":
            return found
        book.add(told(f"{on.variant.name}: a search without a rate", f"{found.verdict}: {found.reason}"))
    raise Lost(f"`brim loadtest {' '.join(words)}` gave no rate {SEARCHES} times")


def _headline(name: str, found: SloRate) -> list[Line]:
    low, high = found.ci95 or (0.0, 0.0)
    rate = (
        f"{found.items_per_s:.4g}/s ({low:.4g} to {high:.4g}, given the {found.given}) in {found.seconds_spent:.0f} s"
    )
    slo = f"p{found.slo.percentile:g} within {found.slo.limit_ms:.4g} ms"
    return [told(f"{name}: rate at {slo}", f"{rate}; capacity {found.capacity_items_per_s or 0:.4g}/s")]


def _held(on: Served, found: SloRate, share: float, seconds: float, seed: int) -> Line:
    assert found.items_per_s is not None  # its caller looked
    load = poisson_load(on, rate=share * found.items_per_s, seconds=seconds, seed=seed)
    return share_line(f"{on.variant.name} at {share:g} of it for {seconds:.0f} s", load, found.slo, meets=share < 1)


def share_line(what: str, load: Observed, slo: Slo, *, meets: bool) -> Line:
    """The share of late requests on the side of the allowed one where it should be."""
    late = float((latencies(load) > slo.limit_ms / 1e3).mean())
    return Line(
        what=f"{what}: late", bound=f"{'at most' if meets else 'more than'} {slo.over_allowed:.3g}",
        measured=f"{late:.4f} of {len(latencies(load))}", held=(late <= slo.over_allowed) == meets,
    )  # fmt: skip


def _resnet(book: Book) -> ModelCard:
    file = layout.card_file(book.out, "resnet50")
    if not file.is_file():
        raise NotReady(f"there is no {file}; `brim export resnet50` writes it")
    return disk.load(ModelCard, file)


def _variant(card: ModelCard, max_batch: int) -> Variant:
    config = ServingConfig(name=f"b{max_batch}", max_batch=max_batch)
    return Variant(model=card, config=resolve(config, mode="embedded", known=False))
