"""From a bare machine to `.venv/` and `.tools/`, and the bundle for a host without internet; standard library only."""
