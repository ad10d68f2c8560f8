"""The smallest source, operator and sink there can be: for tests that look only at plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from helios_ray.connectors.base import Guarantee, Sink, Source, Split, SplitReader
from helios_ray.operators.base import Operator
from helios_ray.plan.graph import CallSite, Graph, Link, Node, Reads, Transforms, TwoStage, Writes
from helios_ray.plan.physical import Partitioning

FLIGHTS = pa.schema([("carrier", pa.string()), ("origin", pa.string()), ("delay", pa.float64())])


class FakeSource(Source):
    def __init__(self, schema: pa.Schema | None = FLIGHTS) -> None:
        self._schema = schema

    @property
    def bounded(self) -> bool:
        return True

    def schema(self) -> pa.Schema | None:
        return self._schema

    def discover_splits(self, parallelism: int) -> Sequence[Split]:
        return [Split(split_id=str(i)) for i in range(parallelism)]

    def open_split(self, split: Split) -> SplitReader:
        raise AssertionError(f"a plan never reads, and {split} was opened")


class FakeSink(Sink):
    guarantee = Guarantee.EXACTLY_ONCE

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.checked: list[pa.Schema | None] = []

    def check(self, schema: pa.Schema | None) -> None:
        self.checked.append(schema)

    def write(self, batch: pa.RecordBatch) -> None:
        self.rows.append(batch)


class LeakySink(FakeSink):
    guarantee = Guarantee.AT_LEAST_ONCE


class Keeps(Operator):
    """Passes rows on."""


class LocalHalf(Operator):
    """Passes rows on, before a shuffle."""


class MergingHalf(Operator):
    """Passes rows on, after a shuffle."""


class Sketch:
    """A graph drawn by hand: one method per shape, each returning the node."""

    def __init__(self) -> None:
        self.graph = Graph()

    def source(self, uid: str | None = "in", **fields: Any) -> Node:
        return self._add("source", Reads(source=FakeSource()), (), uid, stateful=True, **fields)

    def op(self, *inputs: Node | Link, uid: str | None = None, **fields: Any) -> Node:
        kind = fields.pop("kind", "map")
        stages = TwoStage(local=LocalHalf, merge=MergingHalf) if fields.pop("stages", 0) else None
        role = Transforms(factory=Keeps, two_stage=stages)
        return self._add(kind, role, inputs, uid, **fields)

    def sink(self, *inputs: Node | Link, uid: str | None = "out", **fields: Any) -> Node:
        role = Writes(prototype=fields.pop("prototype", FakeSink()))
        return self._add("sink", role, inputs, uid, stateful=True, **fields)

    def _add(
        self, kind: str, role: Any, inputs: Sequence[Node | Link], uid: str | None, **fields: Any
    ) -> Node:
        links = tuple(i if isinstance(i, Link) else Link(upstream=i.id) for i in inputs)
        site = fields.pop("call_site", CallSite("job.py", len(self.graph) + 1))
        return self.graph.add(kind=kind, role=role, inputs=links, uid=uid, call_site=site, **fields)


def by_key(node: Node, *keys: str) -> Link:
    return Link(upstream=node.id, partitioning=Partitioning.HASH, keys=keys)
