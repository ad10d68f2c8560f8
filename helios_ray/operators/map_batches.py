"""A user's function over batches, with Ray Data's arguments and meanings.

Why it exists: models and vectorized code want columns, not rows, and often a constructor
that loads something once (a callable class).

A batch never waits: ``batch_size`` cuts each incoming batch into pieces of at most that many
rows and the last piece may be shorter. Waiting for more rows would hold back data across
checkpoints; larger batches come from the channel, which coalesces under load.

May import: elements, errors, operators, Arrow, numpy (pandas only where it is asked for).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa

from helios_ray.elements import Batch
from helios_ray.errors import ConfigError
from helios_ray.operators.base import Operator, OperatorContext, OperatorSnapshot, StateTable
from helios_ray.operators.rows import OutputSchema, to_rows
from helios_ray.operators.user_functions import FailureHandler, OnError, around, position

BatchFormat: TypeAlias = Literal["default", "numpy", "pandas", "pyarrow"]


class MapBatchesOperator(Operator):
    """Whatever a function makes of each batch.

    Args:
        fn: a function, or a class whose instances are callable; a class is instantiated
            once per subtask, in ``open``. Called with a batch of ``batch_format``, returns
            a dict of arrays, a ``pyarrow.Table`` or ``RecordBatch``, a ``pandas.DataFrame``,
            or an iterator of these (a generator), each of which becomes one batch.
        batch_size: at most this many rows per call, or None for batches as they come.
        batch_format: ``"pyarrow"`` (Table), ``"pandas"``, ``"numpy"`` (dict of arrays);
            ``"default"`` means ``"numpy"``.
        fn_args, fn_kwargs: passed to each call after the batch.
        fn_constructor_args, fn_constructor_kwargs: passed to the class.
        zero_copy_batch: True allows read-only views of the stream's own memory; False gives
            copies that may be written to.
        schema: of the output; inferred from the first result where it is None.
        on_error: under ``skip`` and ``dead_letter``, rows whose call raised are given again by
            halves, until the rows that fail alone are found; those are left out, and of all
            others the results count. Nothing that a call returned or yielded before it or
            its rest raised is used.

    Raises:
        ConfigError: an argument that does not fit; also arguments that the function or the
            class's constructor does not take.

    Example:
        >>> operator = MapBatchesOperator(lambda batch: {"y": batch["x"] * 2}, batch_size=2)
        >>> operator.open(OperatorContext(uid="double"))
        >>> [b.data.to_pydict() for b in operator.process_batch(
        ...     Batch(pa.record_batch({"x": [1, 2, 3]})))]
        [{'y': [2, 4]}, {'y': [6]}]
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        batch_size: int | None = None,
        batch_format: BatchFormat | None = "default",
        fn_args: Iterable[Any] | None = None,
        fn_kwargs: Mapping[str, Any] | None = None,
        fn_constructor_args: Iterable[Any] | None = None,
        fn_constructor_kwargs: Mapping[str, Any] | None = None,
        zero_copy_batch: bool = True,
        schema: pa.Schema | None = None,
        on_error: OnError = "raise",
    ) -> None:
        if not callable(fn):
            raise ConfigError(f"map_batches needs a function or a callable class, got {fn!r}.")
        if inspect.isclass(fn) and "__call__" not in dir(fn):
            raise ConfigError(f"map_batches: class {fn.__name__} needs a __call__(self, batch).")
        if not inspect.isclass(fn) and (
            fn_constructor_args is not None or fn_constructor_kwargs is not None
        ):
            raise ConfigError(
                "map_batches: fn_constructor_args and fn_constructor_kwargs are for a callable "
                "class, and fn is a function. Pass fn_args or fn_kwargs instead."
            )
        if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
            raise ConfigError(
                f"map_batches: batch_size must be a positive number of rows, or None for batches "
                f"as they come, got {batch_size!r}."
            )
        if batch_format is not None and batch_format not in get_args(BatchFormat):
            raise ConfigError(
                f"map_batches: batch_format must be one of {', '.join(get_args(BatchFormat))}, "
                f"got {batch_format!r}."
            )
        fn_args, fn_kwargs = tuple(fn_args or ()), dict(fn_kwargs or {})
        if inspect.isclass(fn):
            given = tuple(fn_constructor_args or ()), dict(fn_constructor_kwargs or {})
            _check_call(f"the constructor of {fn.__name__}", fn, *given)
            call = f"{fn.__name__}.__call__"
            _check_call(call, fn.__call__, ("self", "batch", *fn_args), fn_kwargs)
        else:
            called = getattr(fn, "__name__", type(fn).__name__)
            _check_call(called, fn, ("batch", *fn_args), fn_kwargs)
        self._fn = fn
        self._batch_size = batch_size
        # Ray Data's None is "the format of the block"; here every block is Arrow.
        self._format: str = "pyarrow" if batch_format is None else batch_format
        self._args = fn_args
        self._kwargs = fn_kwargs
        self._constructor_args = tuple(fn_constructor_args or ())
        self._constructor_kwargs = dict(fn_constructor_kwargs or {})
        self._zero_copy = zero_copy_batch
        self._failures = FailureHandler("map_batches", on_error)
        self._output = OutputSchema("map_batches", schema)
        self._call: Callable[..., Any] | None = None

    def open(self, context: OperatorContext) -> None:
        super().open(context)
        self._failures.uid = context.uid
        self._output.open(context)
        if inspect.isclass(self._fn):
            build: Callable[..., Any] = self._fn
            self._call = build(*self._constructor_args, **self._constructor_kwargs)
        else:
            self._call = self._fn

    def process_batch(self, batch: Batch, input_index: int = 0) -> list[Batch]:
        rows = batch.data.num_rows
        step = self._batch_size or max(1, rows)
        out: list[Batch] = []
        for start in range(0, rows, step):
            out += self._results(batch, start, min(start + step, rows))
        return out + self._failures.drain()

    def _results(self, batch: Batch, start: int, stop: int) -> list[Batch]:
        """What the function makes of rows ``start`` to ``stop``; by halves where it fails."""
        piece = batch.data.slice(start, stop - start)
        try:
            tables = list(self._tables(piece))
        except Exception as error:
            if self._failures.on_error != "raise" and stop - start > 1:
                middle = (start + stop) // 2
                return self._results(batch, start, middle) + self._results(batch, middle, stop)
            self._failures.failed(error, to_rows(piece), start, batch)
            return []
        self._output.model = batch.data.schema
        place = position(batch, start)
        said = f" for the rows from {place}" if place else f" for the rows from row {start}"
        return [
            Batch(self._output.from_table(table, said), around(batch.origin), batch.tag)
            for table in tables
            if table.num_rows
        ]

    def _tables(self, piece: pa.RecordBatch) -> Iterator[pa.Table]:
        assert self._call is not None, "open() comes before process_batch()"
        given = to_format(piece, self._format, zero_copy=self._zero_copy)
        result = self._call(given, *self._args, **self._kwargs)
        if isinstance(result, Iterator):
            for part in result:
                yield from_result(part)
        else:
            yield from_result(result)

    def counters(self) -> Mapping[str, int]:
        return self._failures.counters()

    def snapshot(self) -> OperatorSnapshot:
        return self._output.snapshot()

    def restore(self, state: Mapping[str, StateTable]) -> None:
        self._output.restore(state)

    def close(self) -> None:
        close = getattr(self._call, "close", None)
        if inspect.isclass(self._fn) and callable(close):
            close()
        self._call = None


def _check_call(what: str, fn: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Arguments that cannot be taken are found when the job is built, not where it runs."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return  # built-in functions do not tell
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(
            f"map_batches: {what}{signature} cannot be called as asked: {error}. The batch comes "
            f"first, then fn_args and fn_kwargs; a class is made with fn_constructor_args and "
            f"fn_constructor_kwargs."
        ) from error


def to_format(piece: pa.RecordBatch, batch_format: str, *, zero_copy: bool = True) -> Any:
    """Rows in the form that a batch function is given.

    Args:
        piece: rows.
        batch_format: ``"pyarrow"``, ``"pandas"``, ``"numpy"`` or ``"default"``.
        zero_copy: whether read-only views are allowed.
    """
    table = pa.Table.from_batches([piece])
    if batch_format == "pyarrow":
        return table  # immutable by nature
    if batch_format == "pandas":
        frame = table.to_pandas(use_threads=False)
        return frame if zero_copy else frame.copy(deep=True)
    return {name: _to_numpy(piece.column(name), zero_copy) for name in piece.schema.names}


def _to_numpy(array: pa.Array, zero_copy: bool) -> Any:
    if isinstance(array, pa.FixedShapeTensorArray):
        values = array.to_numpy_ndarray()
    else:
        values = array.to_numpy(zero_copy_only=False)
    return values if zero_copy or values.flags.writeable else values.copy()


def from_result(result: Any) -> pa.Table:
    """What a batch function returned, as a table.

    Raises:
        TypeError: it is none of the forms that are allowed.
        ValueError: columns of different lengths.
    """
    if isinstance(result, pa.Table):
        return result
    if isinstance(result, pa.RecordBatch):
        return pa.Table.from_batches([result])
    if isinstance(result, Mapping):
        names = list(result)
        arrays = [_from_column(name, values) for name, values in result.items()]
        lengths = {len(array) for array in arrays}
        if len(lengths) > 1:
            got = ", ".join(f"{n}: {len(a)}" for n, a in zip(names, arrays, strict=True))
            raise ValueError(f"the columns of a batch have one length, got {got}")
        return pa.Table.from_arrays(arrays, names=names)
    if hasattr(result, "iloc") and hasattr(result, "columns"):
        return pa.Table.from_pandas(result, preserve_index=False).replace_schema_metadata(None)
    raise TypeError(
        f"expected a dict of arrays, a pyarrow Table or RecordBatch, a pandas DataFrame, or an "
        f"iterator of these, got {type(result).__name__}"
    )


def _from_column(name: object, values: Any) -> pa.Array:
    if not isinstance(name, str):
        raise TypeError(f"column names are strings, got {name!r}")
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
    if isinstance(values, pa.Array):
        return values
    if isinstance(values, np.ndarray):
        if values.ndim == 0:
            raise ValueError(f"column {name!r} is a single value; a batch needs one per row")
        if values.ndim > 1:
            return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))
        return pa.array(values)
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
        raise TypeError(f"column {name!r} must be an array or a list, got {type(values).__name__}")
    return pa.array(values)
