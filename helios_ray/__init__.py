"""helios_ray: exactly-once streaming on a Ray cluster, in Python.

    from helios_ray import StreamExecutionEnvironment
    from helios_ray.aggregates import count

    env = StreamExecutionEnvironment()
    env.from_items(["a", "b", "a"], uid="letters").key_by("item").aggregate(
        n=count(), uid="counts"
    ).print()
    env.execute("letters")

Names are imported when they are first used: ``import helios_ray`` costs a few milliseconds
and imports neither Ray nor Arrow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from helios_ray._version import __version__

if TYPE_CHECKING:
    from helios_ray.checkpoint.config import CheckpointConfig, EncryptionConfig
    from helios_ray.checkpoint.sealed import EncryptionAlgorithm
    from helios_ray.checkpoint.storage import CheckpointStorage
    from helios_ray.connectors.base import Guarantee, IdempotentSink, Sink, Source
    from helios_ray.environment import StreamExecutionEnvironment
    from helios_ray.errors import HeliosError
    from helios_ray.operators.async_map import AsyncRetry
    from helios_ray.operators.expressions import col, lit
    from helios_ray.plan.graph import PlanWarning
    from helios_ray.protocol.restart import (
        ExponentialBackoff,
        FailureRate,
        FixedDelay,
        NoRestart,
        RestartStrategy,
    )
    from helios_ray.runtime.job import JobHandle, JobResult
    from helios_ray.stream import (
        Branches,
        ConnectedStreams,
        DataStream,
        DataStreamSink,
        KeyedStream,
        WindowedStream,
    )
    from helios_ray.watermarks import WatermarkGenerator, WatermarkStrategy

__all__ = [
    "AsyncRetry",
    "Branches",
    "CheckpointConfig",
    "CheckpointStorage",
    "ConnectedStreams",
    "DataStream",
    "DataStreamSink",
    "EncryptionAlgorithm",
    "EncryptionConfig",
    "ExponentialBackoff",
    "FailureRate",
    "FixedDelay",
    "Guarantee",
    "HeliosError",
    "IdempotentSink",
    "JobHandle",
    "JobResult",
    "KeyedStream",
    "NoRestart",
    "PlanWarning",
    "RestartStrategy",
    "Sink",
    "Source",
    "StreamExecutionEnvironment",
    "WatermarkGenerator",
    "WatermarkStrategy",
    "WindowedStream",
    "__version__",
    "col",
    "lit",
]

_HOME = {
    "AsyncRetry": "helios_ray.operators.async_map",
    "ConnectedStreams": "helios_ray.stream",
    "WindowedStream": "helios_ray.stream",
    "Branches": "helios_ray.stream",
    "CheckpointConfig": "helios_ray.checkpoint.config",
    "CheckpointStorage": "helios_ray.checkpoint.storage",
    "DataStream": "helios_ray.stream",
    "DataStreamSink": "helios_ray.stream",
    "EncryptionAlgorithm": "helios_ray.checkpoint.sealed",
    "EncryptionConfig": "helios_ray.checkpoint.config",
    "ExponentialBackoff": "helios_ray.protocol.restart",
    "FailureRate": "helios_ray.protocol.restart",
    "FixedDelay": "helios_ray.protocol.restart",
    "Guarantee": "helios_ray.connectors.base",
    "HeliosError": "helios_ray.errors",
    "IdempotentSink": "helios_ray.connectors.base",
    "JobHandle": "helios_ray.runtime.job",
    "JobResult": "helios_ray.runtime.job",
    "KeyedStream": "helios_ray.stream",
    "NoRestart": "helios_ray.protocol.restart",
    "PlanWarning": "helios_ray.plan.graph",
    "RestartStrategy": "helios_ray.protocol.restart",
    "Sink": "helios_ray.connectors.base",
    "Source": "helios_ray.connectors.base",
    "StreamExecutionEnvironment": "helios_ray.environment",
    "WatermarkGenerator": "helios_ray.watermarks",
    "WatermarkStrategy": "helios_ray.watermarks",
    "col": "helios_ray.operators.expressions",
    "lit": "helios_ray.operators.expressions",
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'helios_ray' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
