"""Become another program that cannot outlive its parent: `supervise.py PARENT_PID CPUS PROGRAM [ARGUMENT…]`.

Run as a script, on its own, so that nothing of Python happens between fork and exec. CPUS is `0,1` or empty.
To the kernel the parent is the thread that forked: start it from one that lives as long as it shall.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Sequence

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>; the setting survives exec


def command(program: Sequence[str], cpus: Iterable[int] = ()) -> list[str]:
    """What starts this program as a child that cannot outlive this process."""
    pinned = ",".join(str(cpu) for cpu in cpus)
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid()), pinned, *program]


def main(arguments: list[str]) -> None:
    """Tie this process to its parent, pin it, and exec; a program that cannot be run ends it with status 127."""
    parent, cpus, program = int(arguments[0]), arguments[1], arguments[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    if cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(",")})
    try:
        os.execv(program[0], program)
    except OSError as error:
        print(f"{program[0]}: {error.strerror}", file=sys.stderr)
        os._exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
