"""Streams: the fluent face of a dataflow.

Why it exists: a user writes ``source.filter(...).key_by(...).aggregate(...).sink_to(...)``;
each call adds one node to the environment's graph and returns the stream of its results.

Promises: nothing runs before ``execute``; a stream is a value that can be read many times;
what can be known to be wrong (a column, a uid, a parallelism) is refused on its own line.

May import: plan, operators, connectors, aggregates.
"""

from helios_ray.stream.branches import Branches
from helios_ray.stream.configurable import DataStreamSink
from helios_ray.stream.connected import ConnectedStreams
from helios_ray.stream.data_stream import DataStream
from helios_ray.stream.keyed_stream import KeyedStream
from helios_ray.stream.windowed import WindowedStream

__all__ = [
    "Branches",
    "ConnectedStreams",
    "DataStream",
    "DataStreamSink",
    "KeyedStream",
    "WindowedStream",
]
