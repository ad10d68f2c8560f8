"""Keyed state as Arrow tables, and what is checked when one comes back.

Why it exists: what is in a checkpoint can be opened offline, and what is restored is
compared with what the program declares, before anything of it is used.

May import: errors, state, Arrow, numpy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from helios_ray.errors import StateMismatchError
from helios_ray.state.index import KeyIndex, Slots
from helios_ray.state.keyed.handle import EXPIRES, NAMESPACE, VALUE, Handle
from helios_ray.state.keyed.timers import TimerQueue
from helios_ray.state.keyed.value import ValueHandle

TIMERS = "timers"
KEY_GROUP = "key_group"
_KEY = "key."
_TIMER_FIELDS = [pa.field(NAMESPACE, pa.string()), pa.field(VALUE, pa.int64())]

H = TypeVar("H", bound=Handle)


def keyed_table(
    index: KeyIndex,
    fields: Sequence[pa.Field],
    slots: Slots | None,
    columns: Mapping[str, Any],
) -> pa.Table:
    """Key groups, keys, and columns beside them; ``slots`` None is every slot in order."""
    keys, groups = index.key_table(), index.key_groups()
    if slots is not None:
        places = pa.array(slots)
        keys, groups = keys.take(places), groups.take(places)
    schema = [pa.field(KEY_GROUP, pa.int32())]
    schema += [pa.field(f"{_KEY}{field.name}", field.type) for field in keys.schema]
    schema += fields
    arrays = [groups, *keys.columns, *(columns[field.name] for field in fields)]
    return pa.Table.from_arrays(arrays, schema=pa.schema(schema))


def timer_table(index: KeyIndex, event: TimerQueue, processing: TimerQueue) -> pa.Table:
    """All timers, in the order of firing."""
    (event_times, event_slots), (times, slots) = event.columns(), processing.columns()
    domains = ["event"] * len(event_times) + ["processing"] * len(times)
    columns = {
        NAMESPACE: pa.array(domains, pa.string()),
        VALUE: pa.array(np.concatenate((event_times, times))),
    }
    return keyed_table(index, _TIMER_FIELDS, np.concatenate((event_slots, slots)), columns)


def broadcast_table(fields: Sequence[pa.Field], columns: Mapping[str, Any]) -> pa.Table:
    """The entries of a broadcast state."""
    arrays = [columns[field.name] for field in fields]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def stored_keys(
    where: str, name: str, table: pa.Table, keys: Sequence[str], own: range
) -> tuple[pa.Table, Slots]:
    """The key columns of a stored table, under their names, and its key groups.

    Raises:
        StateMismatchError: other key columns, or key groups that are not ``own``.
    """
    found = [n.removeprefix(_KEY) for n in table.column_names if n.startswith(_KEY)]
    if found != list(keys):
        raise StateMismatchError(
            f"{where}: table {name!r} of its state is kept by {found}, and the stream is keyed by "
            f"{list(keys)}. Key it as before, or give the operator a new uid to start it afresh."
        )
    groups = table.column(KEY_GROUP).to_numpy()
    if len(groups) and (int(groups.min()) < own.start or int(groups.max()) >= own.stop):
        raise StateMismatchError(
            f"{where}: state of key groups {int(groups.min())} to {int(groups.max())} came to a "
            f"subtask that owns {own.start} to {own.stop - 1}. Restore it with the max_parallelism "
            f"it was written with."
        )
    columns = table.select([f"{_KEY}{key}" for key in keys]).rename_columns(list(keys))
    return columns, groups


def stored_columns(
    where: str,
    name: str,
    table: pa.Table,
    slots: Slots,
    state: H | None,
    known: Iterable[str],
) -> tuple[H, dict[str, pa.Array]]:
    """The columns of a stored state beside its keys, checked against its declaration.

    Raises:
        StateMismatchError: not declared, of another kind or type, or two values for a key.
    """
    state, columns = broadcast_columns(where, name, table, state, known)
    if isinstance(state, ValueHandle) and len(np.unique(slots)) != len(slots):
        raise StateMismatchError(
            f"{where}: table {name!r} has {len(slots)} rows for {len(np.unique(slots))} keys; a "
            f"key has one. The checkpoint was not written by this operator."
        )
    return state, columns


def broadcast_columns(
    where: str, name: str, table: pa.Table, state: H | None, known: Iterable[str]
) -> tuple[H, dict[str, pa.Array]]:
    """As :func:`stored_columns`, for state without keys."""
    if state is None:
        short, declared = name.partition(".")[2], sorted(known)
        near = difflib.get_close_matches(short, declared, n=1)
        hint = f" Did you rename it to {near[0]!r}?" if near else ""
        raise StateMismatchError(
            f"{where}: the checkpoint holds state {short!r}, and the function declares "
            f"{declared}.{hint} Declare it again, or give the operator a new uid to start it "
            f"without state."
        )
    columns: dict[str, pa.Array] = {}
    for field in state.fields:
        if field.name == EXPIRES and EXPIRES not in table.column_names:
            continue
        stored = table.schema.field(field.name).type
        if stored != field.type:
            raise StateMismatchError(
                f"{where}: {field.name} of state {state.state_name!r} was written as {stored} and "
                f"is declared as {field.type}. Declare it as before, or under a new name."
            )
        column = table.column(field.name).combine_chunks()
        columns[field.name] = _one_chunk(column)
    return state, columns


def _one_chunk(column: Any) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks else pa.array([], column.type)
    return column
