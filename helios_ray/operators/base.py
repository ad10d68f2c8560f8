"""The contract of an operator.

Why it exists: everything between a source and a sink is an :class:`Operator`, driven the
same way under Ray, in the simulator and in a unit test. An operator is synchronous and
pure: no threads, no clock, no I/O of its own; it is handed batches and hands batches back.

May import: elements, state.
"""

from __future__ import annotations

import enum
from abc import ABC
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa

from helios_ray.elements import Batch


class StateKind(enum.Enum):
    """How a state table is shared out when it is restored."""

    KEYED = "keyed"
    """Rows carry an int32 column ``key_group``; each subtask gets the rows of its range."""
    SPLIT = "split"
    """Rows are dealt out round-robin when the parallelism changed."""
    UNION = "union"
    """Every subtask gets every row."""
    BROADCAST = "broadcast"
    """Every subtask holds the same rows; each gets one copy."""


@dataclass(frozen=True, slots=True)
class StateTable:
    """One named piece of an operator's state, as immutable Arrow data."""

    kind: StateKind
    table: pa.Table


NONE_BLOCKED: frozenset[int] = frozenset()

OperatorSnapshot: TypeAlias = dict[str, StateTable]
"""State tables by name. A name is stable: it is part of the checkpoint format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorContext:
    """Who an operator instance is.

    Args:
        job: job name.
        uid: the operator's uid.
        subtask: index of this subtask.
        parallelism: number of subtasks.
        max_parallelism: number of key groups; fixed for the life of the state.
        key_groups: the contiguous range of key groups this subtask owns.
    """

    job: str = "job"
    uid: str = "operator"
    subtask: int = 0
    parallelism: int = 1
    max_parallelism: int = 128
    key_groups: range = range(128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Something to be awaited outside the operator, which has no event loop of its own.

    Args:
        request_id: unique within the instance; the answer carries it.
        call: starts it; the awaitable's result is the answer.
        timeout: seconds after which it is cancelled and answered with ``TimeoutError``.
    """

    request_id: int
    call: Callable[[], Awaitable[Any]]
    timeout: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """How a request ended: with a value, or with what was raised."""

    request_id: int
    value: Any = None
    error: Exception | None = None


class Operator(ABC):
    """Turns batches into batches.

    The order of calls::

        open, [restore], (process_batch | on_watermark | on_processing_time | on_input_end |
        take_requests | on_response | snapshot)*, [end_input, snapshot*], close

    ``outstanding`` is False when ``end_input`` comes.

    ``snapshot`` may come at any point between two batches and must not change anything.
    An instance is used for one epoch; after a recovery a fresh one is opened and restored.
    """

    context: OperatorContext

    def open(self, context: OperatorContext) -> None:
        """Called once, before anything else. Overrides call ``super().open(context)``."""
        self.context = context

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        """Rows have arrived on input ``input_index``; return what they produce."""
        return [batch]

    def on_watermark(self, timestamp: int) -> list[Batch]:
        """Event time has reached ``timestamp`` (µs). Called before the watermark goes on."""
        return []

    def output_watermark(self, timestamp: int) -> int:
        """The watermark to pass on for input watermark ``timestamp``; may hold it back."""
        return timestamp

    def set_processing_time(self, now: int) -> None:
        """Processing time is ``now`` (µs) for the calls that follow; it may stand still.

        Called before ``process_batch``, ``on_watermark`` and ``end_input``: an operator has no
        clock of its own. ``on_processing_time`` brings its own time.
        """

    def next_timer(self) -> int | None:
        """Processing time (µs) at which ``on_processing_time`` is due, or None."""
        return None

    def on_processing_time(self, now: int) -> list[Batch]:
        """Processing time has reached ``now`` (µs)."""
        return []

    def blocked_inputs(self) -> frozenset[int]:
        """Inputs whose rows should wait: the operator holds as much as it may.

        Marks and barriers behind such rows wait with them; those that come first do not.
        """
        return NONE_BLOCKED

    @property
    def outstanding(self) -> bool:
        """Whether rows are held that only processing time or an answer lets go.

        The end of the last input waits until there are none, so that checkpoints go on.
        """
        return False

    @property
    def withholds(self) -> bool:
        """Whether rows are held that another input is sure to let go, such as by its end.

        While it is true, the task does not say that it is idle, though its inputs may be: event
        time downstream waits for these rows. Not for rows that wait for event time itself
        (windows, joins in step by it): idle inputs may never bring that, and nobody may wait for
        it. The end of the last input does not wait: it may be what lets the rows go.
        """
        return False

    def take_requests(self) -> Sequence[Request]:
        """Requests to start now; each is handed out once. Asked after every other call."""
        return ()

    def on_response(self, response: Response) -> list[Batch]:
        """A request has ended. ``output_watermark`` is asked again after it."""
        return []

    def on_input_end(self, input_index: int) -> list[Batch]:
        """This input has ended and others go on; for the last one, ``end_input`` comes.

        After a restore it is called again for an input that had ended before the checkpoint,
        though not before the first rows of others: what the operator knew is in its snapshot.
        """
        return []

    def end_input(self) -> list[Batch]:
        """Every input has ended; return what was held back. No rows follow."""
        return []

    def snapshot(self) -> OperatorSnapshot:
        """Return the state by reference to immutable Arrow data, in microseconds."""
        return {}

    def restore(self, state: Mapping[str, StateTable]) -> None:
        """Take up state that was shared out to this subtask by the rule of its kind."""

    def signature(self) -> str | None:
        """What the state means where its columns do not say it: the size of a window, the
        bounds of an interval. State that means something else is refused when a job resumes.

        Settings that may change between runs (lateness, triggers, times to live) are no part.
        """
        return None

    def input_types(self) -> Sequence[pa.Schema | None]:
        """Of each input, columns whose types the state holds to; what is not known is None."""
        return ()

    def counters(self) -> Mapping[str, int]:
        """What this instance has counted since ``open``, by metric name.

        Names begin with ``operator.`` (``operator.skipped_rows``); values only grow.
        """
        return {}

    def close(self) -> None:
        """Release what ``open`` acquired. Called on failure as well."""
