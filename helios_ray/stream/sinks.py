"""Where streams end: sink_to, print, collect.

Why it exists: only what leads to a sink runs.

May import: plan, connectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from helios_ray.connectors.base import Sink
from helios_ray.connectors.simple import PrintSink
from helios_ray.errors import PlanError
from helios_ray.plan.graph import Collects, Role, Writes, describe_connector
from helios_ray.plan.options import OperatorOptions
from helios_ray.stream.base import BaseStream, where
from helios_ray.stream.configurable import DataStreamSink

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Sinks(BaseStream):
    """The methods of a stream that end it."""

    def sink_to(self, sink: Sink, **options: Unpack[OperatorOptions]) -> DataStreamSink:
        """Send rows out of the job.

        Args:
            sink: each subtask gets a copy. One that is neither transactional nor
                idempotent is announced as at-least-once when the job starts.

        Raises:
            PlanError: ``sink`` is no sink.
        """
        if not isinstance(sink, Sink):
            raise PlanError(
                f"{where('sink_to')}: expected a Sink, got {sink!r}. Pass an instance such as "
                f"FileSink(path), or subclass TwoPhaseCommitSink, IdempotentSink or Sink."
            )
        return self._sink("sink", Writes(prototype=sink), describe_connector(sink), options)

    def print(self, prefix: str = "", **options: Unpack[OperatorOptions]) -> DataStreamSink:
        """Print rows on the standard output of the workers, each line after ``prefix``."""
        sink = PrintSink(prefix)
        return self._sink("print", Writes(prototype=sink), describe_connector(sink), options)

    def collect(self, **options: Unpack[OperatorOptions]) -> DataStreamSink:
        """Keep rows for the driver: ``JobResult.collect(uid)`` returns them as an Arrow table.

        Exactly-once, like any transactional sink. Meant for results that fit in memory.
        """
        return self._sink("collect", Collects(), "", options)

    def _sink(self, kind: str, role: Role, detail: str, options: OperatorOptions) -> DataStreamSink:
        node = self._add(
            kind, role, options, schema=self._schema, detail=detail, stateful=kind != "print"
        )
        return DataStreamSink(self._graph, node.id)
