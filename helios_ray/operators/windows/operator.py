"""The one way to make a window operator.

Why it exists: a plan asks for a window by its description; which class carries it out is
this room's business.

May import: operators.windows, windowing, watermarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Literal, TypeAlias

import pyarrow as pa

from helios_ray.operators.user_functions import OnError
from helios_ray.operators.window_aggregates.specs import (
    Merging,
    WindowAggregations,
    merging_of,
)
from helios_ray.operators.windows.counted import CountWindowOperator
from helios_ray.operators.windows.halves import LocalWindowOperator, MergingWindowOperator
from helios_ray.operators.windows.reading import WindowReader
from helios_ray.operators.windows.results import ProcessWindowFunction
from helios_ray.operators.windows.session import SessionWindowOperator
from helios_ray.operators.windows.settings import WindowSettings
from helios_ray.operators.windows.sliced import SlicedWindowOperator
from helios_ray.watermarks import EventTime
from helios_ray.windowing import ZERO, CountWindow, SessionWindow, Trigger, WindowSpec

Half: TypeAlias = Literal["local", "merge"]


def window_operator(
    keys: Sequence[str],
    time_column: str | EventTime | None,
    window: WindowSpec,
    aggregations: WindowAggregations | None = None,
    *,
    process: ProcessWindowFunction | None = None,
    allowed_lateness: timedelta = ZERO,
    trigger: Trigger | None = None,
    accumulating: bool = True,
    on_error: OnError = "raise",
    input_schema: pa.Schema | None = None,
    half: Half | None = None,
) -> WindowReader:
    """An operator that aggregates windows.

    Results carry the key columns, ``window_start`` and ``window_end`` (timestamps of
    microseconds, in the time column's zone; row numbers for count windows; null for global
    ones), then the results by name. They come out by the window's end, then in the order in
    which the window first saw the keys. A row is late if every window it belongs to has been
    over for ``allowed_lateness``: it goes to the side output ``late`` and is counted as
    ``operator.late_rows``.

    Args:
        keys: key columns; none for one window over all rows, which is one task.
        time_column, window, aggregations, process, allowed_lateness, trigger, accumulating,
            on_error, input_schema: see :class:`WindowSettings`.
        half: only the half before a shuffle (``"local"``) or the one after it (``"merge"``).
            Of windows that :func:`halves` gives.

    Raises:
        ConfigError: settings that do not fit each other.
        MissingColumnError, PlanError: columns or types of ``input_schema`` that do not do.

    Example:
        >>> from helios_ray.elements import Batch
        >>> from helios_ray.operators.aggregation import Aggregation
        >>> from helios_ray.operators.base import OperatorContext
        >>> from helios_ray.windowing import TumblingWindow
        >>> operator = window_operator(
        ...     ["k"], "ts", TumblingWindow(timedelta(microseconds=10)), {"n": Aggregation("count")}
        ... )
        >>> operator.open(OperatorContext(uid="per-10"))
        >>> operator.process_batch(Batch(pa.record_batch({"k": ["a", "b", "a"], "ts": [1, 12, 3]})))
        []
        >>> [fired] = operator.on_watermark(9)
        >>> fired.data.select(["k", "n"]).to_pydict()
        {'k': ['a'], 'n': [2]}
    """
    settings = WindowSettings(
        keys=(keys,) if isinstance(keys, str) else tuple(keys),
        time_column=time_column,
        window=window,
        aggregations=aggregations if aggregations is not None else {},
        process=process,
        allowed_lateness=allowed_lateness,
        trigger=trigger if trigger is not None else Trigger.on_watermark(),
        accumulating=accumulating,
        on_error=on_error,
        input_schema=input_schema,
    )
    if half is not None:
        return LocalWindowOperator(settings) if half == "local" else MergingWindowOperator(settings)
    if isinstance(window, SessionWindow):
        return SessionWindowOperator(settings)
    if isinstance(window, CountWindow):
        return CountWindowOperator(settings)
    return SlicedWindowOperator(settings)


def halves(
    window: WindowSpec, aggregations: WindowAggregations, schema: pa.Schema | None
) -> Merging | None:
    """Whether windows may be aggregated in two halves, and what that does to the results.

    Not those whose bounds depend on the rows themselves: of a session some rows can be late
    and others not, and a count window numbers rows in the order in which those of all
    subtasks arrive.

    Args:
        window: the kind of window.
        aggregations: what is computed.
        schema: of the rows, where it is known.

    Returns:
        None where they may not; else the least of what
        :data:`~helios_ray.operators.window_aggregates.specs.Merging` says of the aggregates.

    Example:
        >>> from helios_ray.windowing import TumblingWindow
        >>> from helios_ray.operators.aggregation import Aggregation
        >>> window, schema = TumblingWindow(timedelta(hours=1)), pa.schema([("x", pa.float64())])
        >>> halves(window, {"top": Aggregation("max", "x")}, schema)
        'exact'
        >>> halves(window, {"total": Aggregation("sum", "x")}, schema)
        'rounded'
    """
    if isinstance(window, SessionWindow | CountWindow):
        return None
    found = {merging_of(aggregation, schema) for aggregation in aggregations.values()}
    if "rounded" in found:
        return "rounded"
    return "whole" if "whole" in found else "exact"
