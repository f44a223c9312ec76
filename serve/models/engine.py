"""Serves an exported model through the engine that the in-process ceiling runs too, adding as little as it can.

Reads 1/model.onnx beside itself and the parameters of config.pbtxt.
"""

from __future__ import annotations

import json
from itertools import accumulate, pairwise
from pathlib import Path
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
        pb_utils.Logger.log_info(f"Brim: {args['model_instance_name']} computes on {self._engine.provider}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """One run of the engine for all requests; if it fails, each of them gets its words as an error."""
        parts = {name: [stub.input_array(request, name) for request in requests] for name in self._inputs}
        try:
            outputs = self._engine.run({name: _joined(arrays) for name, arrays in parts.items()})
        except Exception as error:  # noqa: BLE001  # the process boundary: the server has to stay up
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))) for _ in requests]
        ends = accumulate((len(array) for array in parts[self._inputs[0]]), initial=0)
        return [
            stub.response(**{name: batch[start:end] for name, batch in outputs.items()})
            for start, end in pairwise(ends)
        ]

    def finalize(self) -> None:
        self._engine.close()


def _joined(arrays: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """The batch: one copy where it has more than one request, none otherwise."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
