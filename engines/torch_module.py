"""A torch module as an engine: the reference that an exported model is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from engines.engine import Arrays, Port


class TorchModuleEngine:
    """`module` in evaluation mode, inputs in the order of `inputs`.

    Sets torch's process-wide threads, and lays images out channels-last, which halves the time of convolutions.
    """

    def __init__(self, module: Any, *, inputs: Sequence[Port], outputs: Sequence[Port], threads: int) -> None:
        torch.set_num_threads(threads)
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._module = module.eval().to(memory_format=torch.channels_last)
        self.provider = f"torch {next((p.device.type for p in module.parameters()), 'cpu')}"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        device = self.provider.removeprefix("torch ")
        given = [_channels_last(torch.from_numpy(inputs[port.name]).to(device)) for port in self.inputs]
        with torch.inference_mode():
            answer = self._module(*given)
        tensors = answer if isinstance(answer, (tuple, list)) else (answer,)
        return {port.name: t.cpu().numpy() for port, t in zip(self.outputs, tensors, strict=True)}

    def close(self) -> None:
        del self._module


def _channels_last(tensor: Any) -> Any:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
