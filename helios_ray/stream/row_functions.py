"""Operators that call a user's function: map, flat_map, map_batches.

Why it exists: Python per row or per batch is where streams meet ordinary code, models and
libraries; the arguments are Ray Data's.

May import: plan, operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from helios_ray.errors import ConfigError
from helios_ray.operators.base import Operator
from helios_ray.operators.map_batches import MapBatchesOperator
from helios_ray.operators.stateless import FlatMapOperator, MapOperator
from helios_ray.plan.graph import describe_function
from helios_ray.plan.options import OperatorOptions, check_count
from helios_ray.stream.base import BaseStream, OnError, Row, check_callable, where

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from helios_ray.stream.data_stream import DataStream


class RowFunctions(BaseStream):
    """The methods of a stream that call functions."""

    def map(
        self,
        fn: Callable[[Row], Row],
        *,
        schema: pa.Schema | None = None,
        on_error: OnError = "raise",
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """Replace each row by ``fn(row)``.

        Args:
            fn: takes a row, a dict of Python values, and returns one; anything else that it
                returns becomes ``{"item": value}``. Let it be deterministic: after a failure
                it is called again, and results should be the same.
            schema: of the results; if not given, the first results decide it.
            on_error: ``"raise"``, ``"skip"`` or ``"dead_letter"``.

        Raises:
            UserFunctionError: when the job runs and ``fn`` raises; names the row.

        Example:
            >>> from helios_ray import StreamExecutionEnvironment
            >>> numbers = StreamExecutionEnvironment().from_range(10, uid="numbers")
            >>> numbers.map(lambda row: {"square": row["item"] ** 2})
            DataStream[known when it runs]
        """
        return self._rowwise("map", MapOperator, fn, schema, on_error, options)

    def flat_map(
        self,
        fn: Callable[[Row], Iterable[Row]],
        *,
        schema: pa.Schema | None = None,
        on_error: OnError = "raise",
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """Replace each row by the rows that ``fn(row)`` yields: none, one or many.

        Args and errors as for :meth:`map`.

        Example:
            >>> from helios_ray import StreamExecutionEnvironment
            >>> lines = StreamExecutionEnvironment().from_items(["to be", "or not"], uid="lines")
            >>> lines.flat_map(lambda row: row["item"].split())
            DataStream[known when it runs]
        """
        return self._rowwise("flat_map", FlatMapOperator, fn, schema, on_error, options)

    def _rowwise(
        self,
        kind: str,
        operator: Callable[..., Operator],
        fn: Callable[[Row], Any],
        schema: pa.Schema | None,
        on_error: OnError,
        options: OperatorOptions,
    ) -> DataStream:
        check_callable(kind, fn)
        return self._operator(
            kind,
            partial(operator, fn, schema=schema, on_error=on_error),
            options,
            schema=schema,
            detail=describe_function(fn),
            on_error=on_error,
            stateful=schema is None,  # the schema of its first results is kept
        )

    def map_batches(
        self,
        fn: Callable[..., Any] | type,
        *,
        batch_size: int | None = None,
        batch_format: Literal["default", "numpy", "pandas", "pyarrow"] | None = "default",
        zero_copy_batch: bool = True,
        fn_args: Iterable[Any] | None = None,
        fn_kwargs: Mapping[str, Any] | None = None,
        fn_constructor_args: Iterable[Any] | None = None,
        fn_constructor_kwargs: Mapping[str, Any] | None = None,
        concurrency: int | tuple[int, ...] | None = None,
        schema: pa.Schema | None = None,
        on_error: OnError = "raise",
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """Replace each batch by ``fn(batch)``, with the arguments of ``ray.data.map_batches``.

        Args:
            fn: a function of a batch, or a class whose instances are called with batches
                and which is constructed once per subtask (for models and connections), and
                anew after a failure, when the job goes back to its last checkpoint: what an
                instance remembers is not in it. Any number of rows may be returned.
            batch_size: most rows per call; None takes batches as they come. No batch waits
                for rows to fill it.
            batch_format: ``"default"`` and ``"numpy"`` give a dict of arrays, ``"pandas"`` a
                DataFrame, ``"pyarrow"`` a Table.
            zero_copy_batch: False hands out copies that ``fn`` may change.
            fn_args, fn_kwargs: passed on after the batch.
            fn_constructor_args, fn_constructor_kwargs: for the class.
            concurrency: Ray Data's word for ``parallelism``: how many instances there are.
            schema: of the results; if not given, the first results decide it.
            on_error: ``"raise"``, or ``"skip"`` or ``"dead_letter"`` for the rows that fail:
                they are found by calling ``fn`` again with halves of the batch that failed.
            options: ``num_cpus``, ``num_gpus``, ``memory`` and ``resources`` are set aside for
                each instance, in an actor of its own.

        Raises:
            ConfigError: ``batch_size`` is below 1, constructor arguments are given for a
                function, arguments do not fit the signature, ``concurrency`` is a range, or
                it and ``parallelism`` differ. When the job starts: the cluster has not the
                CPUs or GPUs.

        Example:
            >>> from helios_ray import StreamExecutionEnvironment
            >>> class Scale:
            ...     def __init__(self, factor):
            ...         self.factor = factor  # load the model here
            ...     def __call__(self, batch):
            ...         return {"y": batch["item"] * self.factor}
            >>> numbers = StreamExecutionEnvironment().from_range(10, uid="numbers")
            >>> numbers.map_batches(Scale, fn_constructor_args=[2], concurrency=2, uid="scale")
            DataStream[known when it runs]
        """
        here = where("map_batches")
        check_callable("map_batches", fn)
        _refuse_ray_only(here, options)
        if isinstance(concurrency, tuple | list):
            raise ConfigError(
                f"{here}: concurrency must be a number, got the range {concurrency!r}. A job's "
                f"operators have a fixed number of subtasks, as their state is cut along it: "
                f"give the one that you can afford all the time, such as "
                f"concurrency={max(concurrency, default=1)}; with num_gpus=0.5 two share a GPU."
            )
        if concurrency is not None:
            check_count("concurrency", concurrency, here)
            if options.get("parallelism") not in (None, concurrency):
                raise ConfigError(
                    f"{here}: concurrency={concurrency} and parallelism={options['parallelism']} "
                    f"mean the same thing and differ. Give one of them."
                )
            options["parallelism"] = concurrency
        factory = partial(
            MapBatchesOperator,
            fn,
            batch_size=batch_size,
            batch_format=batch_format,
            zero_copy_batch=zero_copy_batch,
            fn_args=None if fn_args is None else tuple(fn_args),
            fn_kwargs=None if fn_kwargs is None else dict(fn_kwargs),
            fn_constructor_args=(
                None if fn_constructor_args is None else tuple(fn_constructor_args)
            ),
            fn_constructor_kwargs=(
                None if fn_constructor_kwargs is None else dict(fn_constructor_kwargs)
            ),
            schema=schema,
            on_error=on_error,
        )
        return self._operator(
            "map_batches",
            factory,
            options,
            schema=schema,
            detail=describe_function(fn),
            on_error=on_error,
            stateful=schema is None,  # the schema of its first results is kept
        )


_RAY_ONLY = {
    "compute": "give concurrency= instead: how many instances there are, for a class or function",
    "ray_remote_args_fn": "give num_cpus=, num_gpus=, memory= or resources= instead",
    "udf_modifying_row_count": "leave it out: any number of rows may be returned",
    "max_calls": "leave it out: an operator's process lives as long as its job",
    "runtime_env": "give it to ray.init() or ray job submit, for the whole job",
    "accelerator_type": "ask for the resource that Ray makes of it instead: "
    "resources={'accelerator_type:A100': 0.001}",
}
"""Arguments of ``ray.data.map_batches`` that a job has no use for, and what to give instead."""


def _refuse_ray_only(here: object, options: Mapping[str, object]) -> None:
    for name in options:
        if name in _RAY_ONLY:
            raise ConfigError(
                f"{here}: {name}= is an argument of Ray Data only; {_RAY_ONLY[name]}."
            )
