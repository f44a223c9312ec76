"""What every python-backend model does when Triton's stub starts it, and the logs of what it executed.

Copied beside each model as 1/stub.py. Reads the parameters of config.pbtxt, PYTHONPATH and BRIM_SERVER_FOLDER;
writes <server folder>/executions-<variant>.<instance>.csv (known servers), itemised-<variant>.<instance>.csv (engine).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import triton_python_backend_utils as pb_utils

#: The launcher sets it for tritonserver, and stubs inherit it.
SERVER_FOLDER = "BRIM_SERVER_FOLDER"
#: 70 MB; an hour of the quickest batches that a CPU computes.
ITEMISED_LINES = 1_000_000


def check_numpy(version: str) -> None:
    """Refuse numpy 2: under it the stub of Triton 2.51 reads zeros and sends nothing, without any error."""
    if int(version.split(".", 1)[0]) >= 2:
        raise RuntimeError(
            f"Brim: under numpy {version} Triton's stub would serve zeros, it needs 1.26; "
            "remove .tools/stub and run `make serve` again"
        )


def start(args: dict[str, str]) -> dict[str, str]:
    """Check numpy, log which Python the stub really runs, and give the parameters of config.pbtxt."""
    check_numpy(np.__version__)
    # The stub's interpreter is isolated: it inherits PYTHONPATH, but does not look there by itself.
    sys.path.extend(folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder)
    python = " ".join(sys.version.split())
    pb_utils.Logger.log_info(
        f"Brim: {args['model_instance_name']} runs in Python {python}, numpy {np.__version__}, of {sys.prefix}"
    )
    parameters = json.loads(args["model_config"])["parameters"]
    return {key: value["string_value"] for key, value in parameters.items()}


class ExecutionLog:
    """A line `start_ns,end_ns,items` for each execution of one instance: what clients are held against."""

    def __init__(self, args: dict[str, str]) -> None:
        stream = _log("executions", args)
        if stream is None:
            raise RuntimeError(f"Brim: {SERVER_FOLDER} is not set; a known server logs its executions there")
        self._stream = stream

    def add(self, start_ns: int, end_ns: int, items: int) -> None:
        self._stream.write(f"{start_ns},{end_ns},{items}\n")

    def close(self) -> None:
        self._stream.close()


class ItemisedLog:
    """A line for each execution of an engine: where its time went.

    Serving comes first: nothing is written without a folder, after ITEMISED_LINES, or once the disk is full.
    """

    def __init__(self, args: dict[str, str]) -> None:
        self._stream = _log("itemised", args)
        self._left = ITEMISED_LINES

    def add(self, *numbers: int) -> None:
        if self._stream is not None and self._left > 0:
            self._left -= 1
            try:
                self._stream.write(",".join(map(str, numbers)) + "\n")
            except OSError:
                self._left = 0

    def close(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.close()


def _log(kind: str, args: dict[str, str]) -> TextIO | None:
    """The instance's own file in the server's folder; None where the server has none.

    Line-buffered: whoever reads while the server is up finds every execution that has ended.
    """
    folder = os.environ.get(SERVER_FOLDER)
    if not folder:
        return None
    variant = args["model_name"]
    instance = args["model_instance_name"].removeprefix(f"{variant}_")
    return (Path(folder) / f"{kind}-{variant}.{instance}.csv").open("a", buffering=1, encoding="ascii")


def instance_number(args: dict[str, str]) -> int:
    """0, 1, ... among the instances of a variant, which Triton names <variant>_<group>_<number>; Brim has one group."""
    return int(args["model_instance_name"].rpartition("_")[2])


def input_array(request: Any, name: str = "INPUT") -> np.ndarray[Any, Any]:
    """One tensor of a request; INPUT is what known servers call theirs."""
    array: np.ndarray[Any, Any] = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    return array


def response(**outputs: np.ndarray[Any, Any]) -> Any:
    """An answer made of arrays by output name."""
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
