"""The types of columns as a chain sees them: nulls of no type take the one that is known.

Why it exists: a row function whose results are not declared gives a column the type null for as
long as it has returned nothing else. Each upstream subtask finds out for itself, so what one
sends as nulls another sends as numbers; to an operator that is one column.

A column that has been nulls so far takes the first type that comes; whoever keeps state by its
type says what it makes of that.

May import: elements, operators, Arrow.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.types as pt

from helios_ray.elements import Batch


class InputTypes:
    """The types seen on each input of a chain.

    Example:
        >>> types = InputTypes()
        >>> _ = types.fit(Batch(pa.record_batch({"v": [1]})), 0)
        >>> nulls = pa.record_batch({"v": pa.nulls(2)})
        >>> types.fit(Batch(nulls), 0).data.schema.field("v").type
        DataType(int64)
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], pa.DataType] = {}
        self._last: dict[int, pa.Schema] = {}

    def learn(self, input_index: int, schema: pa.Schema) -> None:
        """Columns of an input are of these types: a checkpoint says so."""
        for field in schema:
            if not pt.is_null(field.type):
                self._known.setdefault((input_index, field.name), field.type)

    def fit(self, batch: Batch, input_index: int) -> Batch:
        """The batch, with columns of nothing but untyped nulls in the types known for them."""
        schema = batch.data.schema
        last = self._last.get(input_index)
        if last is not None and last.equals(schema):
            return batch
        untyped = [i for i, field in enumerate(schema) if pt.is_null(field.type)]
        if not untyped:
            self._last[input_index] = schema
            self.learn(input_index, schema)
            return batch
        self.learn(input_index, schema)
        data = batch.data
        for i in untyped:
            kind = self._known.get((input_index, schema.field(i).name))
            if kind is not None:
                nulls = pa.nulls(data.num_rows, kind)
                data = data.set_column(i, schema.field(i).with_type(kind), nulls)
        return batch if data is batch.data else Batch(data, batch.origin, batch.tag)
