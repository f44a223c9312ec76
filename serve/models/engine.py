"""Serves an exported model through the engine that the in-process ceiling runs too, adding as little as it can.

Reads 1/model.onnx beside itself and the parameters of config.pbtxt; writes
<server folder>/itemised-<variant>.<instance>.csv, each line start_ns, end_ns, items, and the nanoseconds of copy in,
concatenate, run and copy out.
"""

from __future__ import annotations

import gc
import json
from itertools import accumulate, pairwise
from pathlib import Path
from time import monotonic_ns
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from . import stub


class TritonPythonModel:
    """One engine, opened once, in each instance."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = stub.start(args)
        from engines.engine import open_engine  # only now is the checkout on the path

        config = json.loads(parameters["brim.config"])
        self._engine = open_engine(
            config["engine"],
            Path(args["model_repository"], args["model_version"], "model.onnx"),
            threads=config["threads"],
            device=parameters["brim.device"],
            options=config["engine_options"],
        )
        self._inputs = [port.name for port in self._engine.inputs]
        self._log = stub.ItemisedLog(args)
        gc.collect()
        gc.freeze()  # what is here now stays: collections between two batches need not walk it (0.1 ms a batch)
        pb_utils.Logger.log_info(f"Brim: {args['model_instance_name']} computes on {self._engine.provider}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """One run of the engine for all requests; if it fails, each of them gets its words as an error."""
        start_ns = monotonic_ns()
        parts = {name: [stub.input_array(request, name) for request in requests] for name in self._inputs}
        taken_ns = monotonic_ns()
        batch = {name: _joined(arrays) for name, arrays in parts.items()}
        joined_ns = monotonic_ns()
        try:
            outputs = self._engine.run(batch)
        except Exception as error:  # noqa: BLE001  # the process boundary: the server has to stay up
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))) for _ in requests]
        run_ns = monotonic_ns()
        ends = list(accumulate((len(array) for array in parts[self._inputs[0]]), initial=0))
        responses = [
            stub.response(**{name: rows[start:end] for name, rows in outputs.items()}) for start, end in pairwise(ends)
        ]
        end_ns = monotonic_ns()
        self._log.add(
            start_ns, end_ns, ends[-1], taken_ns - start_ns, joined_ns - taken_ns, run_ns - joined_ns, end_ns - run_ns
        )
        return responses

    def finalize(self) -> None:
        self._log.close()
        self._engine.close()


def _joined(arrays: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """The batch: one copy where it has more than one request, none otherwise."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
