"""A question asked twice: as a dataflow, and in SQL.

Why it exists: queries are written down side by side with what they must equal, and say
themselves how near is near enough where an aggregate is an estimate or a sum of floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from helios_ray import DataStream, StreamExecutionEnvironment
from tests.oracle.data import Data

Build: TypeAlias = Callable[[StreamExecutionEnvironment, Data], DataStream]

QUERIES: dict[str, Query] = {}


@dataclass(frozen=True, kw_only=True)
class Query:
    """One question.

    Args:
        name: unique.
        build: describes the dataflow and returns the stream of its answer.
        sql: the same over the views ``flights``, ``weather`` and ``planes``.
        near: by column, how far a value may be off; other floats to the 9th digit.
    """

    name: str
    build: Build
    sql: str
    near: Mapping[str, float] = field(default_factory=dict)


def query(sql: str, near: Mapping[str, float] | None = None) -> Callable[[Build], Build]:
    """Register the decorated function as a query of its own name."""

    def register(build: Build) -> Build:
        name = build.__name__
        assert name not in QUERIES, f"two queries are called {name}"
        QUERIES[name] = Query(name=name, build=build, sql=sql, near=near or {})
        return build

    return register
