"""The one way to make a window operator.

Why it exists: a plan asks for a window by its description; which class carries it out is
this room's business.

May import: operators.windows, windowing, watermarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pyarrow as pa

from helios_ray.operators.user_functions import OnError
from helios_ray.operators.window_aggregates.specs import WindowAggregations
from helios_ray.operators.windows.base import WindowedOperator
from helios_ray.operators.windows.counted import CountWindowOperator
from helios_ray.operators.windows.results import ProcessWindowFunction
from helios_ray.operators.windows.session import SessionWindowOperator
from helios_ray.operators.windows.settings import WindowSettings
from helios_ray.operators.windows.sliced import SlicedWindowOperator
from helios_ray.watermarks import EventTime
from helios_ray.windowing import ZERO, CountWindow, SessionWindow, Trigger, WindowSpec


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
) -> WindowedOperator:
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
    if isinstance(window, SessionWindow):
        return SessionWindowOperator(settings)
    if isinstance(window, CountWindow):
        return CountWindowOperator(settings)
    return SlicedWindowOperator(settings)
