"""Windows: rows of a key that belong together by time or number, aggregated.

Why it exists: unbounded streams are asked bounded questions. One module holds each kind of
window; they share the keys, the runs of partial rows, and the way results look.

    slices      from event time to slices, and from slices to windows; time zones
    keys        from key values to slots, for keyed and unkeyed streams, without growing forever
    grouping    which rows of partial results belong together
    runs        partial rows in immutable runs, merged log-structured
    reading     what a window operator reads
    base        what every window operator shares
    sliced      tumbling, sliding and global windows
    halves      the same in two halves, with a shuffle between them
    session     session windows
    counted     count windows

May import: errors, operators, state, watermarks, windowing, Arrow, numpy.
"""
