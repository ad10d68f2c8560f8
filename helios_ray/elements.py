"""What flows through a stream: batches of rows and the marks between them.

Why it exists: sources, channels, operators and sinks agree on exactly five kinds of
element. Data is columnar everywhere; event time is microseconds since the Unix epoch, UTC.

May import: nothing but Arrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa

MIN_TIMESTAMP = -(2**63)
"""Before any event: the watermark of a stream that has not said anything yet."""

MAX_TIMESTAMP = 2**63 - 1
"""After any event: the watermark of a bounded stream that has ended."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the rows of a batch came from, for error messages and dead letters.

    Args:
        split: the source split, as its connector names it (a file and byte range, say).
        position: offset of the first row within the split, in the connector's own units.
    """

    split: str
    position: str

    def __str__(self) -> str:
        return f"{self.split} @ {self.position}"


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows.

    Args:
        data: the rows, as one Arrow record batch.
        origin: where they came from, while that is still known.
        tag: ``None`` for the main output, or the name of a side output.
    """

    data: pa.RecordBatch
    origin: Origin | None = None
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class Watermark:
    """No row with an event time at or before ``timestamp`` (µs) is expected any more."""

    timestamp: int


@dataclass(frozen=True, slots=True)
class Idle:
    """This input is silent for now and must not hold the watermark back."""


@dataclass(frozen=True, slots=True)
class CheckpointBarrier:
    """Everything before belongs to checkpoint ``checkpoint_id``, everything after does not.

    Source: Carbone et al., "Lightweight Asynchronous Snapshots for Distributed Dataflows", 2015.
    """

    checkpoint_id: int


@dataclass(frozen=True, slots=True)
class EndOfInput:
    """Nothing follows on this channel."""


StreamElement: TypeAlias = Batch | Watermark | Idle | CheckpointBarrier | EndOfInput


def size_in_bytes(element: StreamElement) -> int:
    """What an element weighs for flow control: the bytes of its own rows, at least 64.

    A sliced batch counts only its slice (``nbytes``), not the buffers behind it.
    """
    if isinstance(element, Batch):
        return max(64, int(element.data.nbytes))
    return 64
