"""Servers of known capacity, measured by every generator and held against their own logs."""
