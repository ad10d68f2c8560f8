"""Reading back what a file sink has committed.

Why it exists: examples and tests compare a job's output with a query over its input. What it
promises: only committed files are read; staged ones are not even looked at.

May import: errors, and the rest of this package.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from helios_ray.connectors.base import Rows
from helios_ray.connectors.files.locations import absolute, list_files
from helios_ray.connectors.files.source import FileSource


def read_committed(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> pa.Table:
    """All rows of all committed files in a directory, as one table.

    Args:
        path: what the sink was given.
        format: ``"parquet"`` or ``"jsonl"``; by the files' suffixes if None.
        storage_options: for fsspec.

    Returns:
        The rows, file by file in the order of their names; a table without columns if
        nothing is committed yet.

    Raises:
        CorruptInputError: a file cannot be decoded.

    Example:
        >>> import tempfile
        >>> read_committed(tempfile.mkdtemp()).num_rows
        0
    """
    place = absolute(path)
    options = dict(storage_options or {})
    tables = []
    for info in list_files([place], options, format):
        # Each by itself: JSON Lines carry no types, and files may differ in what they hold.
        source = FileSource(info.name, format=format, storage_options=options)
        batches = []
        for split in source.discover_splits(1):
            reader = source.open_split(split)
            while isinstance(polled := reader.poll(1 << 20, 0.0), Rows):
                batches.append(polled.data)
            reader.close()
        tables.append(pa.Table.from_batches(batches, schema=source.schema()))
    if not tables:
        return pa.table({})
    return pa.concat_tables(tables, promote_options="permissive")
