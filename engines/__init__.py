"""Run a batch in this process: one small Protocol (engine.py), one module for each runtime.

Works in the tool's environment and, under numpy 1.26, in the one that Triton's python stub runs in: nothing
here imports more than the standard library, numpy, brim.errors and the runtime that the module wraps.
"""
