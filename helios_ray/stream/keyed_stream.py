"""A stream whose rows of equal keys are together; aggregates and reduce over all of it.

Why it exists: state is kept per key, so what needs state needs a key first.

May import: the other modules of this room, plan, operators, aggregates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from helios_ray.errors import ConfigError
from helios_ray.operators.aggregates import Emit, LocalAggregateOperator, RunningAggregateOperator
from helios_ray.operators.aggregation import Aggregation, aggregate_schema, check_names
from helios_ray.operators.reduce import ReduceOperator
from helios_ray.plan.graph import Graph, Link, TwoStage, describe_function
from helios_ray.plan.options import OperatorOptions, node_fields
from helios_ray.plan.two_stage import TwoStageOperator
from helios_ray.stream.base import OnError, Row, by_name, check_callable, where
from helios_ray.stream.data_stream import DataStream
from helios_ray.stream.joined import KeyedJoins
from helios_ray.stream.process import KeyedState
from helios_ray.watermarks import EventTime

if TYPE_CHECKING:
    from typing_extensions import Unpack


class KeyedStream(KeyedState, KeyedJoins, DataStream):
    """Rows that go to the subtask of their key. Any method of a stream works on it too.

    =====================  ============================================================
    over the whole stream  ``aggregate``, ``reduce``, ``count``, ``sum``, ``min``, ``max``, ``mean``
    windows                ``window``
    state of your own      ``process``, ``connect``
    kept per key           ``deduplicate``, ``top_n``
    joins                  ``join``, ``interval_join``, ``temporal_join``, ``co_group``
    =====================  ============================================================

    Example:
        >>> from helios_ray import StreamExecutionEnvironment
        >>> from helios_ray.aggregates import count, max_
        >>> env = StreamExecutionEnvironment()
        >>> bids = env.from_items([{"auction": 7, "price": 3.5}], uid="bids")
        >>> bids.key_by("auction").aggregate(bids=count(), top=max_("price"), uid="hot")
        DataStream[auction: int64, bids: int64, top: double]
    """

    def __init__(
        self,
        graph: Graph,
        links: Sequence[Link],
        schema: pa.Schema | None,
        *,
        keys: Sequence[str],
        time: EventTime | None = None,
    ) -> None:
        super().__init__(graph, links, schema, time=time)
        self._keys = tuple(keys)

    @property
    def keys(self) -> tuple[str, ...]:
        """The key columns."""
        return self._keys

    def aggregate(
        self,
        aggregations: Mapping[str, Aggregation] | None = None,
        /,
        *,
        emit: Emit = "updates",
        local_aggregation: bool | None = None,
        uid: str | None = None,
        name: str | None = None,
        parallelism: int | None = None,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        memory: int | None = None,
        resources: Mapping[str, float] | None = None,
        **named: Aggregation,
    ) -> DataStream:
        """Keep running aggregates per key, over the whole stream so far.

        Args:
            aggregations: results by name; for names that are also options, such as ``name``.
            emit: ``"updates"`` gives, per batch, one row for each key that the batch touched;
                ``"every"`` gives each incoming row the result with that row; ``"final"`` gives
                one row per key when a bounded input ends.
            local_aggregation: whether to aggregate each batch before the shuffle as well. None
                does so where that cannot change a digit: counts, min, max, sums of integers.
                True does so for sums and means of floats too, whose last digits depend on
                the order of addition. Not with ``emit="every"``.
            named: results by name, as in ``bids=count(), top=max_("price")``.

        Raises:
            MissingColumnError: a column is not there; offers the nearest.
            PlanError: a column of that type cannot be aggregated so.
            ConfigError: no aggregation, a result named like a key, or no such ``emit``.
        """
        options = OperatorOptions(
            uid=uid, name=name, parallelism=parallelism, num_cpus=num_cpus,
            num_gpus=num_gpus, memory=memory, resources=resources,
        )  # fmt: skip
        node_fields(options, "aggregate")
        here = where("aggregate")
        chosen = by_name(aggregations, named, "aggregate")
        check_names(self._keys, chosen, here)
        known = self._schema
        schema = None if known is None else aggregate_schema(self._keys, chosen, known, here)
        factory: partial[Any] = partial(RunningAggregateOperator, self._keys, chosen, emit=emit)
        stages: TwoStage | None = None
        if local_aggregation is None:
            local_aggregation = emit != "every" and _can_split(self._keys, chosen, schema)
        if local_aggregation:
            stages = TwoStage(
                local=partial(LocalAggregateOperator, self._keys, chosen),
                merge=partial(factory, partial=True),
            )
            factory = partial(TwoStageOperator, stages.local, stages.merge)
        return self._operator(
            "aggregate",
            factory,
            options,
            two_stage=stages,
            schema=schema,
            detail=", ".join(f"{n}={a}" for n, a in chosen.items()) + f"  emit={emit}",
            stateful=True,
            keeps_time=False,
        )

    def reduce(
        self,
        fn: Callable[[Row, Row], Row],
        *,
        on_error: OnError = "raise",
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """Fold each key's rows into one with ``fn(so_far, row)``; say the result each time.

        Args:
            fn: takes the result so far and the next row, both dicts, and returns the new
                result, with the stream's columns. The first row of a key is its first result.
            on_error: ``"raise"``, ``"skip"`` or ``"dead_letter"``.

        Example:
            >>> from helios_ray import StreamExecutionEnvironment
            >>> env = StreamExecutionEnvironment()
            >>> bids = env.from_items([{"auction": 7, "price": 3.5}], uid="bids")
            >>> bids.key_by("auction").reduce(
            ...     lambda a, b: a if a["price"] >= b["price"] else b, uid="top")
            DataStream[auction: int64, price: double]
        """
        check_callable("reduce", fn)
        return self._operator(
            "reduce",
            partial(ReduceOperator, self._keys, fn, on_error=on_error),
            options,
            schema=self._schema,
            detail=describe_function(fn),
            on_error=on_error,
            stateful=True,
        )

    # -------------------------------------------------------------------------- one aggregate

    def count(self, *, emit: Emit = "updates", uid: str | None = None) -> DataStream:
        """Rows per key, in a column ``count``."""
        return self.aggregate({"count": Aggregation("count")}, emit=emit, uid=uid)

    def sum(self, column: str, *, emit: Emit = "updates", uid: str | None = None) -> DataStream:
        """The sum of a column per key, in a column ``sum_<column>``."""
        return self.aggregate({f"sum_{column}": Aggregation("sum", column)}, emit=emit, uid=uid)

    def min(self, column: str, *, emit: Emit = "updates", uid: str | None = None) -> DataStream:
        """The least value of a column per key, in a column ``min_<column>``."""
        return self.aggregate({f"min_{column}": Aggregation("min", column)}, emit=emit, uid=uid)

    def max(self, column: str, *, emit: Emit = "updates", uid: str | None = None) -> DataStream:
        """The greatest value of a column per key, in a column ``max_<column>``."""
        return self.aggregate({f"max_{column}": Aggregation("max", column)}, emit=emit, uid=uid)

    def mean(self, column: str, *, emit: Emit = "updates", uid: str | None = None) -> DataStream:
        """The mean of a column per key, in a column ``mean_<column>``."""
        return self.aggregate({f"mean_{column}": Aggregation("mean", column)}, emit=emit, uid=uid)


def _can_split(
    keys: Sequence[str], aggregations: Mapping[str, Aggregation], results: pa.Schema | None
) -> bool:
    """Whether partial results give the same to the last bit, in whatever order they come."""
    for name, aggregation in aggregations.items():
        if aggregation.function in ("count", "min", "max"):
            continue
        exact = results is not None and pa.types.is_integer(results.field(name).type)
        if aggregation.function != "sum" or not exact:
            return False
    try:
        LocalAggregateOperator(keys, aggregations)
    except ConfigError:  # a key is called like one of the partial results
        return False
    return True
