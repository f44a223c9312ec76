"""Figures of a GPU host that has only torch: ceilings, two networks, and the layer pair, cell by cell."""
