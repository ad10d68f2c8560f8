"""PostgreSQL sinks: :class:`PostgresSink` (two-phase) and :class:`PostgresUpsertSink`.

Why it exists: results in a database that people query. ``pip install helios-ray[postgres]``.

May import: elements, errors, identifiers, connectors.base.
"""

from __future__ import annotations

from helios_ray.connectors.postgres.sink import PostgresSink
from helios_ray.connectors.postgres.upsert import PostgresUpsertSink

__all__ = ["PostgresSink", "PostgresUpsertSink"]
