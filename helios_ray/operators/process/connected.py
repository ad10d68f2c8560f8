"""Process functions on two inputs: two keyed streams, or a stream and a broadcast one.

May import: elements, errors, operators, state, Arrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError, PlanError
from helios_ray.operators.process.driver import ProcessOperator, rows_of
from helios_ray.operators.process.function import BroadcastProcessFunction, CoProcessFunction
from helios_ray.operators.user_functions import OnError
from helios_ray.state.hashing import check_keys, logical_type


class CoProcessOperator(ProcessOperator):
    """Drives a :class:`CoProcessFunction`: input 0 is the first stream, input 1 the second.

    Args:
        keys1: key columns of the first stream; they name the key in the state.
        keys2: key columns of the second, as many and of the same types.
        function: an instance, or a class without arguments.
        schema, side_outputs, on_error: as for ``KeyedProcessOperator``.
        input_schemas: where they are known, the keys are checked at once.

    Raises:
        ConfigError: no keys, another number of keys on each side, no such function.
        MissingColumnError, PlanError: a key is not a column, cannot be a key, or has another
            type on the other side.

    Example:
        >>> from helios_ray.operators.base import OperatorContext
        >>> from helios_ray.state.keyed.declarations import ValueState
        >>> class Name(CoProcessFunction):
        ...     name = ValueState(pa.string(), default="?")
        ...
        ...     def process_element1(self, row, ctx):
        ...         self.name.update(row["name"])
        ...
        ...     def process_element2(self, row, ctx):
        ...         return {"name": self.name.value(), "score": row["score"]}
        >>> operator = CoProcessOperator(["id"], ["user"], Name())
        >>> operator.open(OperatorContext(uid="names"))
        >>> names = pa.record_batch({"id": [1], "name": ["ann"]})
        >>> scores = pa.record_batch({"user": [1, 2], "score": [7, 8]})
        >>> operator.process_batch(Batch(names), 0)
        []
        >>> operator.process_batch(Batch(scores), 1)[0].data.to_pylist()
        [{'name': 'ann', 'score': 7}, {'name': '?', 'score': 8}]
    """

    what = "co_process"

    def __init__(
        self,
        keys1: Sequence[str],
        keys2: Sequence[str],
        function: CoProcessFunction | type[CoProcessFunction],
        *,
        schema: pa.Schema | None = None,
        side_outputs: Mapping[str, pa.Schema | None] | None = None,
        on_error: OnError = "raise",
        input_schemas: tuple[pa.Schema | None, pa.Schema | None] = (None, None),
    ) -> None:
        if not keys1 or len(keys1) != len(keys2):
            raise ConfigError(
                f"co_process needs the same number of key columns on both sides, at least one, got "
                f"{list(keys1)} and {list(keys2)}. Use key_by on both streams."
            )
        super().__init__(
            function, CoProcessFunction, keys1,
            schema=schema, side_outputs=side_outputs, on_error=on_error,
        )  # fmt: skip
        self._columns = (tuple(keys1), tuple(keys2))
        for schema_, keys in zip(input_schemas, self._columns, strict=True):
            if schema_ is not None:
                check_keys(schema_, keys, "co_process")
        first, second = input_schemas
        if first is not None and second is not None:
            for one, other in zip(*self._columns, strict=True):
                kinds = logical_type(first.field(one).type), logical_type(second.field(other).type)
                if kinds[0] != kinds[1]:
                    raise PlanError(
                        f"co_process: key column {one!r} of the first stream is {kinds[0]} and "
                        f"{other!r} of the second is {kinds[1]}. Cast one of them before key_by."
                    )

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        if batch.data.num_rows == 0:
            return []
        slots = self.backend.begin(batch.data, self._columns[input_index], batch.origin)
        methods = self.function.process_element1, self.function.process_element2
        self._call_rows(methods[input_index], rows_of(batch.data), slots, batch)
        return self._finish(batch)


class BroadcastProcessOperator(ProcessOperator):
    """Drives a :class:`BroadcastProcessFunction`: input 0 is the stream, input 1 the one of
    which every subtask gets every row.

    Args:
        keys: key columns of the stream; empty where it has none.
        function: an instance, or a class without arguments.
        schema, side_outputs, on_error: as for ``KeyedProcessOperator``.
        input_schema: of the stream; where it is known, the keys are checked at once.

    Raises:
        ConfigError: no such function.
        MissingColumnError, PlanError: a key is not a column, or cannot be a key.

    Example:
        >>> from helios_ray.operators.base import OperatorContext
        >>> from helios_ray.state.keyed.declarations import BroadcastState
        >>> class Limits(BroadcastProcessFunction):
        ...     limits = BroadcastState(pa.string(), pa.int64())
        ...
        ...     def process_element(self, row, ctx):
        ...         if row["n"] > self.limits.get(row["kind"], 10):
        ...             return row
        ...
        ...     def process_broadcast_element(self, row, ctx):
        ...         self.limits.put(row["kind"], row["limit"])
        >>> operator = BroadcastProcessOperator([], Limits())
        >>> operator.open(OperatorContext(uid="limits"))
        >>> operator.process_batch(Batch(pa.record_batch({"kind": ["a"], "limit": [3]})), 1)
        []
        >>> rows = pa.record_batch({"kind": ["a", "b"], "n": [5, 5]})
        >>> operator.process_batch(Batch(rows))[0].data.to_pylist()
        [{'kind': 'a', 'n': 5}]
    """

    what = "broadcast_process"

    def __init__(
        self,
        keys: Sequence[str],
        function: BroadcastProcessFunction | type[BroadcastProcessFunction],
        *,
        schema: pa.Schema | None = None,
        side_outputs: Mapping[str, pa.Schema | None] | None = None,
        on_error: OnError = "raise",
        input_schema: pa.Schema | None = None,
    ) -> None:
        super().__init__(
            function, BroadcastProcessFunction, keys,
            schema=schema, side_outputs=side_outputs, on_error=on_error,
        )  # fmt: skip
        if input_schema is not None and keys:
            check_keys(input_schema, self.keys, self.what)

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        if batch.data.num_rows == 0:
            return []
        rows = rows_of(batch.data)
        if input_index == 1:
            self._broadcast(batch, rows)
        else:
            slots = None
            if self.keys:
                slots = self.backend.begin(batch.data, self.keys, batch.origin)
            self._call_rows(self.function.process_element, rows, slots, batch)
        return self._finish(batch)

    def _broadcast(self, batch: Batch, rows: list[dict[str, object]]) -> None:
        states = self.backend.broadcast_states
        for state in states:
            state.writable = True
        try:
            self._call_rows(self.function.process_broadcast_element, rows, None, batch)
        finally:
            for state in states:
                state.writable = False
