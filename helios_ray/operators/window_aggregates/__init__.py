"""Aggregates as partial rows: lift, merge, finish.

Why it exists: a window is put together from slices and from runs of partial results, so each
aggregate says how rows become one partial row, how partial rows become one, and what the
result is. Every partial is Arrow columns, so that state is readable and restores anywhere.

May import: errors, operators, state, Arrow, numpy.
"""
