"""Records a server that somebody else runs, so that it can be asked and loaded; Brim never stops it.

Reads: the server over HTTP, through the guard. Writes: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from brim.errors import NotReady
from brim.kserve import KServe
from brim.records import Server, TargetLimit
from serve import ledger, readiness


def describe(
    url: str, variants: Sequence[str], allowed: Mapping[str, TargetLimit]
) -> tuple[Server, tuple[readiness.VariantState, ...]]:
    """The server at `url` and the state of each variant; with none named, all that are ready there."""
    kserve = KServe(url, allowed)
    about = kserve.metadata()
    index = kserve.repository_index()
    names = tuple(variants) or tuple(str(entry["name"]) for entry in index if entry.get("state") == "READY")
    if not names:
        raise NotReady(f"{kserve.endpoint.url} has no model that is ready; load one there first")
    server = Server(
        id=ledger.new_id(),
        mode="remote",
        http=kserve.endpoint.url,
        grpc=None,
        metrics=None,
        pid=None,
        process_started_s=None,
        version=str(about.get("version", "")),
        variants=names,
        repository=None,
        log=None,
    )
    return server, readiness.states(index, names)
