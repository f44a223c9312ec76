"""Finds out what each candidate Python is by running it: a name on PATH may be a shim that fails.

Reads: PATH. Writes: nothing. Parses on Python 3.8.
"""

from __future__ import annotations

import json
import subprocess

from brim.layout import tools
from install.platform_check import PythonFacts

LIBPYTHON = tools() / "python"  # where a bundle puts the library that the host's Python lacks

#: The embedded server's Pythons first; 3.13 last, because it cannot run that server.
CANDIDATES = ("python3.12", "python3.11", "python3", "python3.13")

# Runs in the candidate. libpython counts only if it reports the same version as the interpreter: beside a static
# 3.11.7 built from source the loader may find the distribution's 3.11.2, and the server's stub would run on that one.
# One that a bundle brought was chosen by a person and need only be of the same minor.
_PROBE = r"""
import ctypes, json, os, sys, sysconfig
try:
    import ensurepip, venv
    has_venv = True
except ImportError:
    has_venv = False
name = "libpython%d.%d.so.1.0" % sys.version_info[:2]
found = None
own = os.path.join(sysconfig.get_config_var("LIBDIR") or "", name)
carried = os.path.join(sys.argv[1], name)
for path in (own, name, carried):
    try:
        version = ctypes.CDLL(path).Py_GetVersion
    except (AttributeError, OSError):
        continue
    version.restype = ctypes.c_char_p
    if path == carried or version().decode().split()[0] == sys.version.split()[0]:
        found = path
        break
if found == name:
    with open("/proc/self/maps") as maps:
        found = next((line.split()[-1] for line in maps if line.rstrip().endswith("/" + name)), None)
base = os.path.join(sys.base_exec_prefix, "bin", "python%d.%d" % sys.version_info[:2])
print(json.dumps({
    "version": list(sys.version_info[:3]),
    "executable": base if os.access(base, os.X_OK) else sys.executable,
    "has_venv": has_venv,
    "libpython": found,
}))
"""


def probe(command: str) -> PythonFacts | None:
    """What this Python says of itself; None if it does not run."""
    try:
        done = subprocess.run(
            [command, "-I", "-c", _PROBE, str(LIBPYTHON)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            timeout=20,  # a shim that waits for something is as good as none
            check=True,
        )
        said = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return PythonFacts(
        command=command,
        version=(said["version"][0], said["version"][1], said["version"][2]),
        executable=said["executable"],
        has_venv=said["has_venv"],
        libpython=said["libpython"],
    )


def candidates(override: str | None, first: str | None = None) -> list[PythonFacts]:
    """The named Python alone; or each that answers, up to the first that can do everything.

    `first` is the one that the checkout stands on already: what was set up once stays on its Python.
    """
    found: list[PythonFacts] = []
    for command in [override] if override else [*([first] if first else []), *CANDIDATES]:
        python = probe(command)
        if python is None:
            continue
        found.append(python)
        if python.embeds:
            break
    return found
