"""The processes that send: each runs as a child, and only here is a load generator imported."""
