"""Shapes of simulated jobs: what each does, and what its sinks must hold in the end.

    builder   chains and edges, one call each
    basic     moving and counting rows
    windows   event-time windows, one after another, and with late rows
    whole     windows of rows, of everything, and of the clock; windows in two halves; the best
    process   process functions with timers, on one input and on two
    joins     two streams
    fading    two streams whose rows are kept for a while only
    tables    a stream and a table that is read beside it
    flow      operators that hold rows back, drop some, or ask outside

A shape is a function from a builder and the dice to what is expected.

May import: plan, operators, connectors, watermarks, and the simulation below ``plans``.
"""
