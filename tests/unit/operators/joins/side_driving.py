"""How the tests of temporal, regular and table joins drive all subtasks of one operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias
from unittest import mock

import pyarrow as pa
from hypothesis import strategies as st

from helios_ray.elements import Batch
from helios_ray.operators.base import OperatorSnapshot, StateKind, StateTable
from helios_ray.operators.joins import columns, regular, regular_rows, side, side_rows
from helios_ray.operators.windows import keys, runs
from helios_ray.state.key_groups import (
    key_group_range,
    key_groups_of_batch,
    partition,
    subtask_of,
)
from tests.unit.operators.support import MAX_PARALLELISM, opened

Row: TypeAlias = dict[str, Any]

LEFT = pa.schema([("k", pa.string()), ("ts", pa.int64()), ("id", pa.int64())])
RIGHT = pa.schema([("key", pa.string()), ("ts", pa.int64()), ("v", pa.int64())])
SCHEMAS = (LEFT, RIGHT)
KEYS = ("k", "key")


def result(left: Row | None, right: Row | None) -> Row:
    """What a pair looks like; None for the side that has no row."""
    one = left or {"k": None if right is None else right["key"], "ts": None, "id": None}
    other = right or {"ts": None, "v": None}
    return {**one, "ts_right": other["ts"], "v": other["v"]}


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Rows in an order of their own."""
    return sorted(rows, key=lambda row: tuple((v is None, v) for v in row.values()))


def key_group(key: str | None) -> int:
    return int(key_groups_of_batch(pa.record_batch({"k": pa.array([key], "string")}), ["k"], 16)[0])


def row_batch(rows: Sequence[Row], schema: pa.Schema, *, encoded: bool = False) -> pa.RecordBatch:
    """Rows as a batch; ``encoded`` as a slice of a larger one with a dictionary for the key."""
    data = pa.RecordBatch.from_pylist(list(rows), schema=schema)
    if not encoded:
        return data
    twice = pa.Table.from_batches([data, data]).combine_chunks().to_batches()[0]
    arrays = [twice.column(0).dictionary_encode(), *twice.columns[1:]]
    return pa.RecordBatch.from_arrays(arrays, names=schema.names).slice(len(rows))


class Subtasks:
    """All subtasks of one join.

    Args:
        make: the operator.
        broadcast: every subtask gets all of the right.
    """

    def __init__(self, make: Callable[[], Any], *, broadcast: bool = False) -> None:
        self.make = make
        self.broadcast = broadcast
        self.parallelism = 1
        self.counted: dict[str, int] = {}
        self.operators = self._opened()

    def _opened(self) -> list[Any]:
        return [opened(self.make(), "j", i, self.parallelism) for i in range(self.parallelism)]

    def send(self, number: int, rows: Sequence[Row], *, encoded: bool = False) -> list[Batch]:
        data = row_batch(rows, SCHEMAS[number], encoded=encoded)
        if number == 1 and self.broadcast:
            return [b for o in self.operators for b in o.process_batch(Batch(data), 1)]
        groups = key_groups_of_batch(data, [KEYS[number]], MAX_PARALLELISM)
        targets = subtask_of(groups, self.parallelism, MAX_PARALLELISM)
        out = []
        parts = partition(data, targets, self.parallelism)
        for operator, part in zip(self.operators, parts, strict=True):
            if part is not None:
                out += operator.process_batch(Batch(part), number)
        return out

    def owner(self, key: str | None) -> int:
        """The subtask that has a key."""
        groups = [i for i in range(self.parallelism) if key_group(key) in self._groups(i)]
        return groups[0]

    def _groups(self, subtask: int) -> range:
        return key_group_range(subtask, self.parallelism, MAX_PARALLELISM)

    def each(self, method: str, *args: Any) -> list[Batch]:
        """Call a method of every subtask."""
        found = [getattr(o, method)(*args) for o in self.operators]
        return [batch for out in found for batch in out or []]

    def rescale(self, parallelism: int) -> None:
        """A checkpoint, and a fresh start from it."""
        snapshots = [operator.snapshot() for operator in self.operators]
        for name, count in self._counts().items():
            self.counted[name] = self.counted.get(name, 0) + count
        self.parallelism = parallelism
        self.operators = self._opened()
        for operator, state in zip(self.operators, share_out(snapshots, parallelism), strict=True):
            operator.restore(state)

    def _counts(self) -> dict[str, int]:
        names = {name for o in self.operators for name in o.counters()}
        return {name: sum(o.counters()[name] for o in self.operators) for name in names}

    def counters(self) -> dict[str, int]:
        """What all subtasks have counted in all their lives."""
        return {n: c + self.counted.get(n, 0) for n, c in self._counts().items()}


def share_out(
    snapshots: Sequence[OperatorSnapshot], parallelism: int
) -> list[dict[str, StateTable]]:
    """Deal state tables out to subtasks by the rule of their kind."""
    kinds = {name: state.kind for snapshot in snapshots for name, state in snapshot.items()}
    shares: list[dict[str, StateTable]] = [{} for _ in range(parallelism)]
    for name, kind in kinds.items():
        tables = [s[name].table if name in s else None for s in snapshots]
        every = pa.concat_tables([t for t in tables if t is not None])
        for subtask, share in enumerate(shares):
            table = every
            if kind is StateKind.KEYED:
                own = key_group_range(subtask, parallelism, MAX_PARALLELISM)
                mine = [group in own for group in every["key_group"].to_pylist()]
                table = every.filter(pa.array(mine, pa.bool_()))
            elif kind is StateKind.BROADCAST:
                table = tables[subtask % len(tables)]
            elif kind is StateKind.SPLIT:
                table = every.take(
                    pa.array(range(subtask, every.num_rows, parallelism), pa.int64())
                )
            if table is not None:
                share[name] = StateTable(kind, table)
    return shares


@contextmanager
def tight_limits(tight: bool) -> Iterator[None]:
    """Join runs, forget keys and cut results at every opportunity."""
    with ExitStack() as stack:
        if tight:
            for module, name, value in (
                (keys, "FORGET_ABOVE", 0),
                (runs, "FANOUT", 2),
                (regular_rows, "FANOUT", 2),
                (regular_rows, "SMALL_ROWS", 0),
                (regular_rows, "PAIRS_AT_ONCE", 2),
                (regular, "_MANY", 2),
                (columns, "EMITTED_ROWS", 2),
                (side, "_LOOSE_BYTES", 0),
                (side_rows, "_SPARE_ROWS", 1),
            ):
                stack.enter_context(mock.patch.object(module, name, value))
        yield


def row_lists(number: int, times: Any, *, null_keys: bool = True) -> Any:
    """Rows of one side, without their ids."""
    key = st.sampled_from([*"abcde", None] if null_keys else "abcde")
    return st.lists(st.tuples(key, times), min_size=1, max_size=8).map(
        lambda pairs: [{KEYS[number]: k, "ts": t} for k, t in pairs]
    )


def numbered(rows: Sequence[Row], number: int, first: int) -> list[Row]:
    """Rows with ids, by which they are told apart."""
    name = ("id", "v")[number]
    return [{**row, name: first + i} for i, row in enumerate(rows)]
