"""What the tests of operators share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from helios_ray.elements import Batch, Origin
from helios_ray.operators.base import (
    Operator,
    OperatorContext,
    OperatorSnapshot,
    StateKind,
    StateTable,
)
from helios_ray.state.key_groups import key_group_range

MAX_PARALLELISM = 16


def opened(operator: Operator, uid: str = "op", subtask: int = 0, parallelism: int = 1) -> Any:
    context = OperatorContext(
        uid=uid,
        subtask=subtask,
        parallelism=parallelism,
        max_parallelism=MAX_PARALLELISM,
        key_groups=key_group_range(subtask, parallelism, MAX_PARALLELISM),
    )
    operator.open(context)
    return operator


def batch(columns: dict[str, Any], schema: pa.Schema | None = None, at: str | None = None) -> Batch:
    origin = Origin("rows.csv", at) if at is not None else None
    return Batch(pa.RecordBatch.from_pydict(columns, schema=schema), origin)


def main_rows(batches: Iterable[Batch]) -> list[dict[str, Any]]:
    return [row for b in batches if b.tag is None for row in b.data.to_pylist()]


def tagged_rows(batches: Iterable[Batch], tag: str) -> list[dict[str, Any]]:
    return [row for b in batches if b.tag == tag for row in b.data.to_pylist()]


def share_out(
    snapshots: Sequence[OperatorSnapshot], parallelism: int
) -> list[dict[str, StateTable]]:
    """Deal state tables out to new subtasks by the rule of their kind."""
    shares: list[dict[str, StateTable]] = []
    names = {name: state.kind for snapshot in snapshots for name, state in snapshot.items()}
    for subtask in range(parallelism):
        share = {}
        owned = key_group_range(subtask, parallelism, MAX_PARALLELISM)
        for name, kind in names.items():
            table = pa.concat_tables([s[name].table for s in snapshots if name in s])
            if kind is StateKind.KEYED:
                groups = table["key_group"].to_pylist()
                table = table.filter(pa.array([g in owned for g in groups], pa.bool_()))
            else:
                assert kind is StateKind.UNION
            share[name] = StateTable(kind, table)
        shares.append(share)
    return shares
