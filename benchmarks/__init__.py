"""Benchmarks: each is one command, quotes medians and spreads, and never runs as a test."""
