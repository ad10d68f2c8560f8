"""Random rows of a schema, each a function of its number.

Why it exists: a load test needs values that look random, and a replay needs the same ones.
What it promises: the value of a column in row ``n`` depends on the seed, the column's place
and ``n``, and on nothing else: not on batches, processes or the version of numpy.

The mixing function is SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014.

May import: errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from helios_ray.errors import ConfigError

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF
_SPAN = 1_000_000
_EPOCH = 1_700_000_000
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def mix(numbers: Any, stream: int) -> Any:
    """SplitMix64 of each number, as uint64.

    Example:
        >>> mix(np.arange(2), 0).tolist()
        [16294208416658607535, 7960286522194355700]
    """
    offset = np.uint64((stream * 0xD1B54A32D192ED03 + _GOLDEN) & _MASK)
    z = numbers.astype(np.uint64) * np.uint64(_GOLDEN) + offset
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def check_schema(schema: pa.Schema) -> None:
    """Refuse types that no random values are made of.

    Raises:
        ConfigError: names the column and its type.
    """
    if len(schema) == 0:
        raise ConfigError("DataGenSource needs a column, got an empty schema. Add one.")
    for field in schema:
        _values(field, np.zeros(1, np.int64), 0)


def random_rows(schema: pa.Schema, seed: int) -> Callable[[Any], Mapping[str, Any]]:
    """A function from row numbers to random columns.

    Integers are below a million (or what the type holds), floats in [0, 1), strings a letter
    and up to six digits; timestamps are a second apart, from November 2023 on.
    """
    return _RandomRows(schema, seed)


class _RandomRows:
    """Pickles to the cluster, which a closure might not."""

    def __init__(self, schema: pa.Schema, seed: int) -> None:
        self._schema = schema
        self._seed = seed

    def __call__(self, numbers: Any) -> pa.RecordBatch:
        columns = [
            _values(field, numbers, self._seed * 1_000_003 + place)
            for place, field in enumerate(self._schema)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)


def _values(field: Any, numbers: Any, stream: int) -> pa.Array:
    kind, types = field.type, pa.types
    if types.is_timestamp(kind):
        return pa.array((numbers + _EPOCH) * _PER_SECOND[kind.unit]).cast(kind)
    dice = mix(numbers, stream)
    if types.is_boolean(kind):
        return pa.array((dice >> np.uint64(63)).astype(np.bool_))
    if types.is_integer(kind):
        span = min(_SPAN, 1 << (kind.bit_width - 1))
        return pa.array((dice % np.uint64(span)).astype(np.int64)).cast(kind)
    if types.is_float32(kind) or types.is_float64(kind):
        # 24 bits are exact in both widths, so neither rounds up to 1.
        return pa.array((dice >> np.uint64(40)).astype(np.float64) / (1 << 24)).cast(kind)
    if types.is_date32(kind):
        return pa.array((dice % np.uint64(20_000)).astype(np.int32)).cast(kind)
    if types.is_string(kind) or types.is_large_string(kind):
        letters = pa.array(list("abcdefghijklmnopqrstuvwxyz")).take(
            pa.array((dice >> np.uint64(32)) % np.uint64(26))
        )
        digits = pa.array((dice % np.uint64(_SPAN)).astype(np.int64)).cast(pa.string())
        joined = pc.binary_join_element_wise(letters, digits, "")
        return joined.cast(kind)
    raise ConfigError(
        f"DataGenSource cannot make up values of column {field.name!r} ({kind}). Supported: "
        f"bool, integers, float, double, date32, timestamps, strings. Pass a function instead."
    )
