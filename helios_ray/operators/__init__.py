"""Operators: everything between a source and a sink, as synchronous, pure objects.

Why it exists: the same operator runs under Ray, in the simulator and in a unit test, driven
through the contract in :mod:`helios_ray.operators.base`. Pure: no Ray, threads, clock or I/O.

May import: elements, errors, state.
"""
