"""The pool of a load as a service holds it: numpy arrays, made into tritonclient's inputs anew for every request.

Reads the prepared payload's .npy files. Its HTTP and gRPC clients differ in module, not in manner, so this serves both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

from brim.errors import UsageError
from brim.records import Status
from loadtest import grpc_requests, request_bytes
from loadtest import payload as pool
from loadtest.driver import LoadSpec
from loadtest.prepared import Payload
from loadtest.senders.answers import clean
from loadtest.senders.promise import unlike


class ClientPool:
    """Inputs and outputs in the terms of one of tritonclient's two modules."""

    def __init__(self, module: Any, spec: LoadSpec, payload: Payload) -> None:
        """`module`: tritonclient.http or tritonclient.grpc; UsageError if the payload is not for it."""
        if payload.regions:
            raise UsageError("--client tritonclient sends over the wire; leave out --client or the shared memory")
        self._module = module
        self._inputs, self._outputs = payload.inputs, {t.name: t for t in payload.outputs}
        folder = Path(spec.payload)
        self._arrays = [_typed(payload, pool.read_inputs(folder, n)) for n in range(len(payload.members))]
        self.infer: dict[str, Any] = {"model_name": payload.model, "model_version": payload.version}

    def request(self, number: int) -> dict[str, Any]:
        """The arguments of one `infer`, built as a service builds them."""
        inputs = []
        for tensor, array in zip(self._inputs, self._arrays[number], strict=True):
            inputs.append(self._module.InferInput(tensor.name, list(array.shape), tensor.dtype))
            inputs[-1].set_data_from_numpy(array)
        outputs = [self._module.InferRequestedOutput(name) for name in self._outputs]
        return {**self.infer, "inputs": inputs, "outputs": outputs}

    def verdict(self, result: Any) -> tuple[Status, str]:
        """Whether the arrays that the result object gives are what the model promised."""
        for name in self._outputs:
            try:
                array = result.as_numpy(name)
            except (ValueError, TypeError, LookupError) as error:  # bytes that do not make up the shape, or none
                return Status.FAILED, clean(f"protocol: output {name}: {error}")
            if array is None:
                return Status.FAILED, clean(f"protocol: output {name} is missing")
            dtype = np_to_triton_dtype(array.dtype)
            if wrong := unlike(self._outputs, name, str(dtype), array.shape, array.nbytes):
                return Status.FAILED, clean(f"protocol: {wrong}")
        return Status.OK, ""

    def message(self, result: Any) -> bytes:
        """The outputs that the result object gives, as one serialized ModelInferResponse."""
        arrays = [(tensor, result.as_numpy(name)) for name, tensor in self._outputs.items()]
        return grpc_requests.answer(
            [(t.name, t.dtype, a.shape, request_bytes.wire(_raw(a, t.dtype), t.dtype)) for t, a in arrays]
        )


def _typed(payload: Payload, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The arrays as a service would have them: BF16 in its own type, not in raw bits."""
    return [
        array if tensor.dtype == "BYTES" else array.view(triton_to_np_dtype(tensor.dtype))
        for tensor, array in ((t, arrays[t.name]) for t in payload.inputs)
    ]


def _raw(array: np.ndarray, dtype: str) -> np.ndarray:
    return array if dtype == "BYTES" else array.view(request_bytes.NUMPY[dtype])
