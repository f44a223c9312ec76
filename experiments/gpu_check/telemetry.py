"""Clocks, temperature and power of the device. Reads nvidia-smi, if there is one."""

from __future__ import annotations

import subprocess

from experiments.gpu_check.cells import Telemetry

#: In the order of Telemetry's fields.
FIELDS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "memory.used")
ANSWER_S = 10.0


def query(uuid: str, fields: tuple[str, ...]) -> str:
    """nvidia-smi's one line for the device, empty where it has none (no tool, a slice of a device)."""
    wanted = f"--query-gpu={','.join(fields)}"
    command = ["nvidia-smi", f"--id={uuid}", wanted, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def parse(line: str) -> Telemetry | None:
    """One line of figures: a field without an answer (`[N/A]`) is None, another shape is no reading."""
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != len(FIELDS):
        return None
    sm_mhz, memory_mhz, temperature_c, power_w, used_mib = map(_number, cells)
    return Telemetry(
        sm_mhz=sm_mhz, memory_mhz=memory_mhz, temperature_c=temperature_c, power_w=power_w, used_mib=used_mib
    )


def read(uuid: str) -> Telemetry | None:
    """The device's state now."""
    return parse(query(uuid, FIELDS)) if uuid else None


def driver(uuid: str) -> str:
    """The driver's version, or 'unknown'."""
    return query(uuid, ("driver_version",)) or "unknown"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
