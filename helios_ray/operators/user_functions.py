"""What happens when a user's function raises.

Why it exists: one bad row among millions must be findable. Every call of user code goes
through a :class:`FailureHandler`, which names the operator, the row and its place in the
source, and then follows the operator's policy:

    raise        (default) the job fails with UserFunctionError; nothing is lost, and the
                 job resumes from its last checkpoint once the function is fixed
    skip         the row is left out and counted (``operator.skipped_rows``)
    dead_letter  the row is left out, counted, and sent to the side output ``dead_letter``

May import: elements, errors, Arrow.
"""

from __future__ import annotations

import base64
import json
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import pyarrow as pa

from helios_ray.elements import Batch, Origin
from helios_ray.errors import ConfigError, UserFunctionError

OnError: TypeAlias = Literal["raise", "skip", "dead_letter"]

DEAD_LETTER = "dead_letter"
"""Tag of the side output that carries rows whose function failed."""

DEAD_LETTER_SCHEMA = pa.schema(
    [
        ("row", pa.string()),
        ("error", pa.string()),
        ("traceback", pa.string()),
        ("operator", pa.string()),
        ("position", pa.string()),
    ]
)
"""Columns of a dead letter: the row as JSON, ``Type: message``, the traceback, the
operator's uid, and the place in the source (null where it is no longer known)."""

SKIPPED_ROWS = "operator.skipped_rows"
_REPR_LIMIT = 500
_AROUND = " and after"


class FailureHandler:
    """Applies one operator's ``on_error`` policy.

    Args:
        what: the operator's kind, for messages (``map``).
        on_error: ``"raise"``, ``"skip"`` or ``"dead_letter"``.

    Raises:
        ConfigError: another policy.
    """

    def __init__(self, what: str, on_error: OnError = "raise") -> None:
        if on_error not in get_args(OnError):
            raise ConfigError(
                f"on_error must be 'raise', 'skip' or 'dead_letter', got {on_error!r}."
            )
        self.what = what
        self.on_error = on_error
        self.uid = "operator"
        self.skipped = 0
        self._letters: list[dict[str, Any]] = []

    def failed(self, error: Exception, rows: Sequence[Any], index: int, batch: Batch) -> None:
        """A function raised on ``rows``, the first of which is row ``index`` of ``batch``.

        Raises:
            UserFunctionError: under the policy ``raise``; chained from ``error``.
        """
        if self.on_error == "raise":
            raise UserFunctionError(self._message(error, rows, index, batch)) from error
        self.skipped += len(rows)
        if self.on_error == "dead_letter":
            trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            for offset, row in enumerate(rows):
                self._letters.append(
                    {
                        "row": to_json(row),
                        "error": _printable(f"{type(error).__name__}: {error}"),
                        "traceback": _printable(trace),
                        "operator": self.uid,
                        "position": position(batch, index + offset),
                    }
                )

    def drain(self) -> list[Batch]:
        """The dead letters since the last call, as at most one batch."""
        if not self._letters:
            return []
        data = pa.RecordBatch.from_pylist(self._letters, schema=DEAD_LETTER_SCHEMA)
        self._letters = []
        return [Batch(data, tag=DEAD_LETTER)]

    def counters(self) -> Mapping[str, int]:
        """``operator.skipped_rows``: rows left out since ``open``."""
        return {SKIPPED_ROWS: self.skipped}

    def _message(self, error: Exception, rows: Sequence[Any], index: int, batch: Batch) -> str:
        shown = truncated(rows[0]) if rows else "no rows"
        which = (
            f"row {index} of its batch"
            if len(rows) == 1
            else (f"rows {index} to {index + len(rows) - 1} of its batch, the first of which is")
        )
        place = position(batch, index)
        source = f", read from {place}" if place else ""
        return (
            f"{self.what} {self.uid!r}: the function raised {type(error).__name__}: {error} "
            f"on {which} {shown}{source}. Fix the function or the row and resume the job, or "
            f"pass on_error='skip' or on_error='dead_letter' to go on without such rows."
        )


def position(batch: Batch, index: int) -> str | None:
    """Where row ``index`` of a batch stands in its source.

    ``origin`` is the place of the batch's first row; the row's own is counted from there, as
    long as rows still stand in the order and number in which they were read.
    """
    if batch.origin is None:
        return None
    if batch.origin.position.endswith(_AROUND):
        return str(batch.origin)
    return f"{batch.origin} + row {index}"


def around(origin: Origin | None) -> Origin | None:
    """The origin of rows of which some are left out or added: no longer countable.

    Example:
        >>> str(around(Origin("a.csv", "40")))
        'a.csv @ 40 and after'
    """
    if origin is None or origin.position.endswith(_AROUND):
        return origin
    return Origin(origin.split, origin.position + _AROUND)


def truncated(value: object) -> str:
    """``repr``, cut to a length that fits a log line."""
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
    return text if len(text) <= _REPR_LIMIT else f"{text[:_REPR_LIMIT]}… ({len(text)} characters)"


def to_json(row: object) -> str:
    """A row as JSON: bytes as base64, everything JSON does not know as text."""
    return json.dumps(row, default=_jsonable, ensure_ascii=True)


def _jsonable(value: object) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(bytes(value)).decode()
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


def _printable(text: str) -> str:
    """Arrow strings are UTF-8; an exception's text may hold lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()
