"""The environment: where a job is described, looked at and started.

Why it exists: it holds what all operators of a job share (checkpoints, parallelism, restarts)
and the graph that the streams write to, and it hands the compiled plan to the runtime.

Promises: describing and explaining a job needs no Ray; it is imported when a job starts.

May import: plan, stream, checkpoint config, connectors, protocol.restart. The runtime only
inside the methods that start a job.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from helios_ray.checkpoint.config import CheckpointConfig
from helios_ray.connectors.base import Source
from helios_ray.connectors.generator import RangeSource
from helios_ray.connectors.items import ItemsSource
from helios_ray.environment.settings import Settings
from helios_ray.errors import ConfigError, PlanError
from helios_ray.plan.compile import CollectFactory, CompiledPlan, compile_graph
from helios_ray.plan.explain import explain_plan
from helios_ray.plan.graph import (
    CallSite,
    Graph,
    Link,
    PlanWarning,
    Reads,
    Writes,
    describe_connector,
)
from helios_ray.plan.options import JobOptions, OperatorOptions, node_fields
from helios_ray.stream.data_stream import DataStream
from helios_ray.watermarks import EventTime, WatermarkStrategy

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from helios_ray.runtime.job import JobHandle, JobResult

Restore: TypeAlias = "str | int | os.PathLike[str] | None"
"""Where a job starts from.

- ``"latest"``: the newest complete checkpoint of the job's name in its storage; afresh if
  there is none.
- an int: that checkpoint of the job.
- any other string or path: the checkpoint or savepoint at that place.
- ``None``: afresh, whatever is there. What is there is neither overwritten nor committed to:
  epochs and checkpoint ids go on growing.
"""


class StreamExecutionEnvironment(Settings):
    """Describes one job. The ``with_`` methods change it and return it.

    Defaults: parallelism 1, 128 key groups, checkpoints every 60 s to an encrypted local
    directory, restarts with exponential backoff.

    Example:
        >>> import pyarrow.compute as pc
        >>> from helios_ray.aggregates import count
        >>> env = StreamExecutionEnvironment().with_parallelism(2).build()
        >>> hot = (env.from_items([{"item": "a", "price": 3}], uid="bids")
        ...        .filter(pc.field("price") > 2)
        ...        .key_by("item")
        ...        .aggregate(bids=count(), uid="hot"))
        >>> _ = hot.collect(uid="out")
        >>> [chain.uid for chain in env.compile("demo").plan.chains]
        ['bids', 'hot']
    """

    def __init__(self) -> None:
        super().__init__()
        self._graph = Graph()
        self._hinted: set[str] = set()

    def __repr__(self) -> str:
        return (
            f"StreamExecutionEnvironment({len(self._graph)} operators, parallelism "
            f"{self._parallelism})"
        )

    # ------------------------------------------------------------------------------- sources

    def from_source(
        self,
        source: Source,
        watermark_strategy: WatermarkStrategy | None = None,
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """Read a source.

        Args:
            source: what to read.
            watermark_strategy: how event time is read from rows; needed for windows.
            options: ``uid``, ``name``, ``parallelism``, ``num_cpus``, ``num_gpus``,
                ``memory``, ``resources``.

        Raises:
            SourceUnavailableError: it can be known already that there is nothing to read.
            MissingColumnError: the strategy reads a column that is not there.
            PlanError: ``source`` is no source.
        """
        return self._source("source", source, watermark_strategy, options)

    def from_items(
        self,
        items: Iterable[Any],
        watermark_strategy: WatermarkStrategy | None = None,
        *,
        schema: pa.Schema | None = None,
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """Read what the program already has: dicts are rows, plain values go to ``item``; an
        Arrow table is read as it is.

        Args:
            items: all dicts or none, or a table; they travel with the job, so keep them few.
            watermark_strategy: as for :meth:`from_source`.
            schema: columns and types; inferred from the items if not given.

        Raises:
            ConfigError: dicts and plain values are mixed, or a column has no common type.

        Example:
            >>> StreamExecutionEnvironment().from_items([1, 2, 3], uid="numbers")
            DataStream[item: int64]
        """
        return self._source("items", ItemsSource(items, schema), watermark_strategy, options)

    def from_range(
        self,
        start: int,
        stop: int | None = None,
        step: int = 1,
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """Read the numbers of ``range(start, stop, step)``, or of ``range(start)``, in a column
        ``item``.

        Raises:
            ConfigError: ``step`` is 0.

        Example:
            >>> StreamExecutionEnvironment().from_range(10, uid="numbers")
            DataStream[item: int64]
        """
        return self._source("range", RangeSource(start, stop, step), None, options)

    def from_ray_dataset(
        self,
        dataset: Any,
        watermark_strategy: WatermarkStrategy | None = None,
        **options: Unpack[OperatorOptions],
    ) -> DataStream:
        """Read a ``ray.data.Dataset``, which is computed once, when the job starts.

        Its blocks stay in Ray's object store; those of a detached job are copied there. A job
        resumes only with the same rows in the same order: give it the same dataset again.

        Args:
            dataset: of any size; tensors of one shape become ``pyarrow.fixed_shape_tensor``.
            watermark_strategy: as for :meth:`from_source`.

        Raises:
            PlanError: ``dataset`` is no dataset.
            ConfigError: a column has a type that no stream can hold; names it.
        """
        from helios_ray.runtime.ray_dataset import RayDatasetSource

        return self._source("ray_dataset", RayDatasetSource(dataset), watermark_strategy, options)

    def _source(
        self,
        kind: str,
        source: Source,
        watermarks: WatermarkStrategy | None,
        options: OperatorOptions,
    ) -> DataStream:
        where = f"from_{kind} at {CallSite.here()}"
        if not isinstance(source, Source):
            raise PlanError(
                f"{where}: expected a Source, got {source!r}. Pass an instance such as "
                f"FileSource('data/*.parquet'), or use from_items([...])."
            )
        if watermarks is not None and not isinstance(watermarks, WatermarkStrategy):
            raise PlanError(
                f"{where}: expected a WatermarkStrategy, got {watermarks!r}. Build one with "
                f"WatermarkStrategy.bounded_out_of_orderness('ts', timedelta(seconds=2))."
            )
        schema = source.schema()
        if watermarks is not None and schema is not None:
            watermarks.check(schema)
            schema = watermarks.output_schema(schema)
        node = self._graph.add(
            kind=kind,
            role=Reads(source=source, watermarks=watermarks),
            schema=schema,
            detail=describe_connector(source),
            stateful=True,
            **node_fields(options, f"from_{kind}"),
        )
        time = None if watermarks is None else EventTime(watermarks.column)
        links = (Link(upstream=node.id),)
        return DataStream(self._graph, links, node.schema, node.id, time=time)

    # ------------------------------------------------------------------------------ the plan

    def compile(self, name: str = "job", collect: CollectFactory | None = None) -> CompiledPlan:
        """Decide what runs where, without running it; see ``helios_ray.plan.compile``.

        Raises:
            PlanError: no stream ends in a sink.
            ConfigError: ``name`` is no name, or a parallelism exceeds the maximum.
        """
        if collect is None:
            return compile_graph(self._graph, name, self._plan_settings())
        return compile_graph(self._graph, name, self._plan_settings(), collect)

    def explain(self, name: str = "job", *, print_: bool = True) -> str:
        """Print the plan and return it: chains, edges, schemas, guarantees, warnings.

        Args:
            name: of the job, as for :meth:`execute`.
            print_: False only returns it.

        Raises:
            PlanError, ConfigError: as :meth:`compile`.
        """
        text = explain_plan(self.compile(name))
        if print_:
            print(text)
        return text

    # --------------------------------------------------------------------------------- start

    def execute(
        self,
        name: str = "job",
        *,
        restore: Restore = "latest",
        allow_unmatched_state: bool = False,
        progress: bool | None = None,
    ) -> JobResult:
        """Run the job and wait for its end, with live progress on a terminal or in a notebook.

        Args:
            name: names the job in storage; running it again under the same name resumes it.
            restore: where to start from; see :data:`Restore`. By default a job resumes from
                its newest checkpoint if it has one, so that running a program again after a
                crash is all that recovery takes. A bounded job that had finished has nothing
                left to do: it ends at once with the result it had. Pass None to run it afresh.
            allow_unmatched_state: start although the checkpoint has state of operators that
                the job no longer has, and drop that state.
            progress: whether to show progress; None decides by who is watching.

        Raises:
            PlanError, ConfigError: the dataflow cannot run as described.
            SinkUnavailableError: a sink cannot be reached.
            CheckpointNotFoundError: there is no checkpoint at ``restore``.
            StateMismatchError: the checkpoint has state the job has no operator for.
            JobFailedError: the job failed and its restart strategy gave up.
        """
        options = self._options(allow_unmatched_state, progress=progress)
        return self._submit(name, restore, options).wait(progress=progress)

    def execute_async(
        self,
        name: str = "job",
        *,
        restore: Restore = "latest",
        allow_unmatched_state: bool = False,
        detached: bool = False,
    ) -> JobHandle:
        """Start the job and return a handle to it; args and errors as for :meth:`execute`.

        Args:
            detached: the job goes on when this program ends.
        """
        options = self._options(allow_unmatched_state, progress=False, detached=detached)
        return self._submit(name, restore, options)

    def _options(
        self, allow_unmatched_state: bool, *, progress: bool | None, detached: bool = False
    ) -> JobOptions:
        return JobOptions(
            buffer_timeout=self._buffer_timeout,
            ray_options=dict(self._ray_options),
            detached=detached,
            progress=progress,
            allow_unmatched_state=allow_unmatched_state,
            heartbeat_timeout=self._heartbeat_timeout,
            stall_timeout=self._stall_timeout,
        )

    def _submit(self, name: str, restore: Restore, options: JobOptions) -> JobHandle:
        wanted = _check_restore(restore)
        compiled = self.compile(name)
        self._say(compiled)
        for node in compiled.nodes.values():
            if isinstance(node.role, Writes):
                node.role.prototype.check(node.input_schema)
        # Only now: a dataflow that cannot run makes no keys.
        config = (self._checkpoints or CheckpointConfig()).prepared()

        def collect(uid: str) -> Any:
            from helios_ray.runtime.collect import CollectSink

            return partial(CollectSink, config=config, job=name, uid=uid)

        compiled = self.compile(name, collect)

        from helios_ray.runtime.submit import submit

        return submit(
            compiled.plan,
            config,
            restore=wanted,
            restart_strategy=self._restart,
            options=options,
        )

    def _say(self, compiled: CompiledPlan) -> None:
        """Warn once about each thing worth a hint, pointing at the user's own line."""
        for hint in compiled.hints:
            if hint.message not in self._hinted:
                self._hinted.add(hint.message)
                site = hint.call_site
                warnings.warn_explicit(hint.message, PlanWarning, site.file, site.line)


def _check_restore(restore: object) -> str | int | None:
    if restore is None or (isinstance(restore, str) and restore):
        return restore
    if isinstance(restore, os.PathLike):
        return str(Path(restore))
    if isinstance(restore, int) and not isinstance(restore, bool) and restore > 0:
        return restore
    raise ConfigError(
        f"restore must be 'latest', a checkpoint id from 1, a path or None, got {restore!r}. "
        f"'latest' resumes if there is something to resume from; None starts afresh."
    )
