"""Experiments: what needs more than one stage, each a pure next_cell and a shell that keeps a journal."""
