"""A stream of rows, and what can be done with it.

Why it exists: one class with every method that needs no key, put together from the modules
that hold them by kind. See ``keyed_stream`` for those that need one.

May import: the other modules of this room.
"""

from __future__ import annotations

from typing import Any

from helios_ray.stream.columns import Columns
from helios_ray.stream.enriched import Enriched
from helios_ray.stream.flow import Flow
from helios_ray.stream.row_functions import RowFunctions
from helios_ray.stream.shape import Shape
from helios_ray.stream.sinks import Sinks


class DataStream(RowFunctions, Columns, Flow, Enriched, Shape, Sinks):
    """Rows on their way. Every method returns a new stream and leaves this one as it is.

    ======================  ===========================================================
    functions               ``map``, ``flat_map``, ``map_batches``, ``map_async``,
                            ``inspect``
    expressions             ``filter`` (a function, too), ``select``, ``with_columns``
    with others             ``enrich``, ``connect``, ``union``
    windows of all rows     ``window_all``
    where rows go           ``key_by``, ``branch``, ``side_output``, ``late``,
                            ``dead_letters``, ``rebalance``, ``broadcast``, ``rate_limit``
    ends                    ``sink_to``, ``print``, ``collect``
    of the last operator    ``uid``, ``name``, ``set_parallelism``, ``set_resources``,
                            ``disable_chaining``
    ======================  ===========================================================

    Options that every operator takes: ``uid``, ``name``, ``parallelism``, ``num_cpus``,
    ``num_gpus``, ``memory``, ``resources``; see ``helios_ray.plan.options.OperatorOptions``.

    Example:
        >>> import pyarrow.compute as pc
        >>> from helios_ray import StreamExecutionEnvironment
        >>> env = StreamExecutionEnvironment()
        >>> small = env.from_range(10, uid="numbers").filter(pc.field("item") < 5)
        >>> small.schema.names
        ['item']
    """

    def __getattr__(self, name: str) -> Any:
        if name in _NEED_A_KEY:
            raise AttributeError(
                f"{type(self).__name__} has no {name}: it keeps something per key. Write "
                f"stream.key_by('column').{name}(...)"
                f"{', or window_all(...) for all rows together' if name == 'window' else ''}."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


_NEED_A_KEY = {
    "aggregate", "reduce", "window", "process", "deduplicate", "top_n",
    "join", "interval_join", "temporal_join", "co_group",
    "count", "sum", "min", "max", "mean",
}  # fmt: skip
