"""Measure what a served model gives: what `brim loadtest` runs."""
