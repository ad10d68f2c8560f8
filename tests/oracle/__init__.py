"""Streaming answers against batch answers: the same question asked of DuckDB.

Why it exists: what a stream computes over bounded data must be what a batch engine computes
over the same data. ``python -m tests.oracle`` runs every query of ``tests.oracle.queries`` and
every example that has a batch meaning as a real job, with its input out of order, in several
splits and under checkpoints, and compares row by row.
"""
