"""`python -m brim`: the front door where the package is not installed, under whatever Python the user names.

Parses on Python 3.8, so that a Python that cannot run Brim is told so in one line and not by a traceback.
"""

import sys
from importlib.util import find_spec


def unfit() -> str:
    """Why this Python cannot run Brim, with what to do; empty if it can."""
    version = sys.version_info[:3]
    if version < (3, 11):  # noqa: UP036 -- this module alone meets older ones
        found = ".".join(map(str, version))
        return f"Brim needs Python 3.11 or later, and {sys.executable} is {found}; name another: PYTHON=/path/to/python"
    if find_spec("click") is None:
        return f"{sys.executable} has no click, which Brim's command line needs: {sys.executable} -m pip install click"
    return ""


if __name__ == "__main__":
    problem = unfit()
    if problem:
        print(f"brim: {problem}\nbrim: exit 3 (not_ready)", file=sys.stderr)
        sys.exit(3)

    from brim.cli import main

    main()
