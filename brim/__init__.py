"""Brim: how many items per second a Triton server can really serve, and what limits it."""

__version__ = "0.1.0"
