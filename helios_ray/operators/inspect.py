"""Look at rows that pass: logging, counting, a breakpoint.

May import: elements, errors, operators, Arrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError
from helios_ray.operators.base import Operator, OperatorContext
from helios_ray.operators.rows import Row, to_rows
from helios_ray.operators.user_functions import FailureHandler, OnError, around


class InspectOperator(Operator):
    """Calls a function with every row and passes the rows on as they came.

    After a recovery rows are read again, and the function sees them again.

    Args:
        fn: called with each row, a dict of its own; its result is ignored.
        on_error: under ``skip`` and ``dead_letter`` a row whose call raised is left out.

    Raises:
        ConfigError: ``fn`` is no function.

    Example:
        >>> seen = []
        >>> operator = InspectOperator(seen.append)
        >>> operator.open(OperatorContext(uid="look"))
        >>> batch = Batch(pa.record_batch({"x": [1, 2]}))
        >>> operator.process_batch(batch) == [batch], seen
        (True, [{'x': 1}, {'x': 2}])
    """

    def __init__(self, fn: Callable[[Row], Any], *, on_error: OnError = "raise") -> None:
        if not callable(fn):
            raise ConfigError(f"inspect needs a function of a row, got {fn!r}.")
        self._fn = fn
        self._failures = FailureHandler("inspect", on_error)

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._failures.uid = context.uid

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        failed: list[int] = []
        for index, row in enumerate(to_rows(batch.data)):
            try:
                self._fn(row)
            except Exception as error:
                came = to_rows(batch.data.slice(index, 1))
                self._failures.failed(error, came, index, batch)
                failed.append(index)
        if not failed:
            return [batch]
        kept = np.delete(np.arange(batch.data.num_rows), failed)
        letters = self._failures.drain()
        if len(kept) == 0:
            return letters
        return [Batch(batch.data.take(pa.array(kept)), around(batch.origin), batch.tag), *letters]

    def counters(self) -> Mapping[str, int]:
        return self._failures.counters()
