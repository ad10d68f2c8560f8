"""Sinks for trying things out: :class:`PrintSink`.

Why it exists: the first sink of every job is the terminal.

May import: errors, connectors.base.
"""

from __future__ import annotations

import sys

import pyarrow as pa

from helios_ray.connectors.base import Sink, SinkContext
from helios_ray.errors import ConfigError


class PrintSink(Sink):
    """Print each row as a dict on standard output.

    At-least-once: rows are printed again after a failure. With more than one subtask each
    line starts with the subtask's index, as ``1> ``.

    Args:
        prefix: written before each row.
        limit: rows to print per subtask and attempt; the rest is only counted, and the
            number of them printed when the sink closes. ``None``: all.

    Raises:
        ConfigError: ``limit`` is negative.

    Example:
        >>> sink = PrintSink("bid: ", limit=1)
        >>> sink.write(pa.record_batch({"price": [7, 8, 9]}))
        bid: {'price': 7}
        >>> sink.close()
        bid: ... and 2 more rows
    """

    def __init__(self, prefix: str = "", limit: int | None = None) -> None:
        if limit is not None and limit < 0:
            raise ConfigError(f"limit must be 0 or more rows, or None for all, got {limit}")
        self._prefix = prefix
        self._limit = limit
        self._subtask = ""
        self._printed = 0
        self._left_out = 0

    def __repr__(self) -> str:
        return f"PrintSink({self._prefix!r}, limit={self._limit})"

    def open(self, context: SinkContext) -> None:
        self._subtask = f"{context.subtask}> " if context.parallelism > 1 else ""
        self._printed = self._left_out = 0

    def write(self, batch: pa.RecordBatch) -> None:
        shown = batch.num_rows
        if self._limit is not None:
            shown = min(shown, self._limit - self._printed)
        self._printed += shown
        self._left_out += batch.num_rows - shown
        if shown:
            start = self._subtask + self._prefix
            # One write per batch, so that lines of several subtasks do not mix.
            rows = batch.slice(0, shown).to_pylist()
            sys.stdout.write("".join(f"{start}{row}\n" for row in rows))

    def flush(self) -> None:
        sys.stdout.flush()

    def close(self) -> None:
        if self._left_out:
            rows = "row" if self._left_out == 1 else "rows"
            print(f"{self._subtask}{self._prefix}... and {self._left_out} more {rows}")
            self._left_out = 0
        sys.stdout.flush()
