"""Keyed state of process functions: one value, list or map per key, timers, expiry.

Why it exists: a user's function sees plain Python values of the current key, while the state
lives in Arrow columns that a snapshot can point at. What a batch reads is decoded in bulk,
what it changed is written back in bulk; no key that it does not touch costs anything.

    declarations  what a user writes: ValueState(pa.int64(), ttl=...)
    fitting       Python values to a declared Arrow type, exactly or not at all
    columns       growable columns of cells
    ttl           when state expires
    scope         the current key and time, shared by all states of a subtask
    cells, value, entries, folding    the states themselves
    timers        event- and processing-time timers
    backend       all of it together, with snapshot, restore and clean-up

May import: elements, errors, state, Arrow, numpy. Pure: no Ray, threads, clock or I/O.
"""
