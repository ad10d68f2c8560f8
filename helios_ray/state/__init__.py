"""State: keys, key groups, and columns that can be snapshotted by reference.

Why it exists: keyed state is cut into key groups by a hash that never changes, and lives in
columns that a snapshot can point at while processing goes on. Pure: no Ray, threads, clock
or I/O.

May import: elements, errors.
"""
