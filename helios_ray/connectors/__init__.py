"""Connectors: where rows come from and where they go, one file or folder per system.

Why it exists: the runtime knows sources and sinks only through the contracts in
:mod:`helios_ray.connectors.base`. Each connector brings its own dependencies as an extra and
imports them only when it is used.

    base         the contracts
    files        Parquet, CSV, JSON Lines; local disk and object stores
    items        rows given in the program
    generator    ranges and generated rows
    postgres     PostgreSQL, two-phase and by upsert
    two_phase    the guide's TwoPhaseCommitSink, for sinks of one's own
    simple       print

May import: elements, errors, identifiers.
"""
