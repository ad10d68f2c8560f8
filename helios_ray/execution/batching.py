"""Joining rows that wait, so that a task that has fallen behind catches up.

Why it exists: the cost of a step is mostly per batch, not per row.

May import: elements.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from helios_ray.elements import Batch, Origin


def concatenate(batches: Sequence[Batch]) -> list[Batch]:
    """Join neighbours of one schema, so that a task that has fallen behind catches up.

    Rows of a joined batch name the origin of the first part.
    """
    if len(batches) <= 1:
        return list(batches)
    joined: list[Batch] = []
    run: list[Batch] = []
    for batch in batches:
        if run and not batch.data.schema.equals(run[0].data.schema):
            joined.append(_join(run))
            run = []
        run.append(batch)
    joined.append(_join(run))
    return joined


def _join(run: list[Batch]) -> Batch:
    if len(run) == 1:
        return run[0]
    first = run[0].origin
    origin = None if first is None else Origin(first.split, f"{first.position} and on")
    return Batch(pa.concat_batches([b.data for b in run]), origin)
