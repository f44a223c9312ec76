"""What every test starts from."""

from __future__ import annotations

import signal

# A shell that starts the tests in its background has them, and all that they start, ignore SIGINT; `brim` hears it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
