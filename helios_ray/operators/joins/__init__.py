"""Joins of two streams, a batch at a time.

Why it exists: a join keeps rows of both sides and answers, for a batch of one side, which kept
rows of the other belong to it. What "belong" means (a window, an interval, a version in time,
a row of a table) makes the kinds; keys, columns and matching are shared.

Promises: equality is SQL's: a null in a key equals nothing. Rows are found by vectorized
search, never row by row. Results do not depend on how the input was cut into batches, except
for their order.

May import: errors, elements, operators, watermarks, windowing, state, Arrow, numpy.
"""
