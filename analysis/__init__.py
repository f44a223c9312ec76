"""Finished runs to answers that a person or a program can read: pure but for the files."""
