"""Variant folders, and the Triton servers that serve them."""
