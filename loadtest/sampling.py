"""The outputs that were kept under load, decoded: what the check of values compares with the in-process engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brim import disk
from brim.errors import InvalidRecord
from brim.records import Target
from loadtest import request_bytes
from loadtest.driver import Sample


def read_outputs(target: Target, samples: Sequence[Sample], folder: Path) -> list[tuple[int, dict[str, np.ndarray]]]:
    """For each sample of the load in `folder`: which payload was sent, and every output by name.

    InvalidRecord if a kept answer does not hold together or lacks one of the target's outputs.
    """
    outputs = []
    for sample in samples:
        file = folder / sample.file
        with disk.told(file):
            body = file.read_bytes()
        try:
            found = _read(body, sample.json_bytes)
            outputs.append((sample.payload, {t.name: found[t.name] for t in target.outputs}))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidRecord(f"{file}: not the answer of {target.model} ({error}); measure again") from error
    return outputs


def _read(body: bytes, json_bytes: int | None) -> dict[str, np.ndarray]:
    if json_bytes is None:
        from loadtest import grpc_requests  # half a second, which only gRPC need pay

        return grpc_requests.read_answer(body)
    return request_bytes.read_tensors(body, json_bytes, "outputs")
