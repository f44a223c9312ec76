"""Pure functions from rows and statistics to windows, steady state, intervals, checks and the verdict."""
