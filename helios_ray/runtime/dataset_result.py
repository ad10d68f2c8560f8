"""What a job has collected, as a Ray dataset.

Why it exists: a result that does not fit into the driver goes on into training or batch work.
The sealed objects are read and opened by Ray tasks; the driver sees references only.

May import: checkpoint, this room's collect, and ``ray``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray

from helios_ray.checkpoint.config import CheckpointConfig
from helios_ray.identifiers import TransactionId
from helios_ray.runtime.collect import committed_transactions, read_transactions

BLOCK_BYTES = 128 << 20
"""Objects are put together to blocks of about this size, Ray Data's own target."""

MOST_TASKS = 64
"""Tasks that read; each takes a run of objects, so that blocks keep the order of commits."""


def collected_dataset(config: CheckpointConfig, job: str, uid: str | None = None) -> Any:
    """A ``ray.data.Dataset`` over what a ``collect()`` sink has committed, in order of commits.

    Args:
        config: the job's.
        job: its name.
        uid: of the sink; may be left out if the job has one.

    Raises:
        CheckpointNotFoundError: there is no such sink, or there are several.
        CheckpointError: what was committed cannot be read or opened.
    """
    from ray import data

    transactions = committed_transactions(config, job, uid)
    if not transactions:
        return data.from_arrow(pa.table({}))
    length = -(-len(transactions) // MOST_TASKS)
    runs = [transactions[i : i + length] for i in range(0, len(transactions), length)]
    read = ray.remote(num_returns="streaming")(_read)
    readers = [read.remote(config, run) for run in runs]
    return data.from_arrow_refs([ref for reader in readers for ref in reader])


def _read(
    config: CheckpointConfig, transactions: list[TransactionId], block_bytes: int = BLOCK_BYTES
) -> Iterator[pa.Table]:
    """In a task: blocks of about ``block_bytes``; of the objects at most one more in memory."""
    tables: list[pa.Table] = []
    size = 0
    for table in read_transactions(config, transactions):
        if tables and size + table.nbytes > block_bytes:
            yield _joined(tables)
            tables, size = [], 0
        tables.append(table)
        size += table.nbytes
    yield _joined(tables)


def _joined(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
