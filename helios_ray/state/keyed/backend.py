"""All keyed state of one operator subtask: keys, states, timers, clocks, clean-up.

Why it exists: the states of a function share one index of keys and one current key. Here a
batch begins (keys become slots) and ends (what changed is written back, a step of clean-up
is done), and here the state becomes tables and comes back from them::

    state.<name>   key_group int32, key.<column>…, namespace, value[, expires]
    timers         key_group int32, key.<column>…, namespace ("event" or "processing"), value

``namespace`` is null for a single value, the position in a list, the key of a map entry;
``expires`` is the deadline (µs) of state under a TTL. Rows are those of keys that have state.

What it promises: a snapshot is immutable and holds nothing that has expired; keys that have
neither state nor timers are forgotten in time, so memory follows the live state.

May import: errors, state, Arrow, numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from helios_ray.elements import MIN_TIMESTAMP
from helios_ray.errors import ConfigError, SchemaChangedError, StateMismatchError
from helios_ray.state.hashing import check_keys, decoded
from helios_ray.state.index import KeyIndex, Slots
from helios_ray.state.keyed.declarations import (
    AggregatingState,
    BroadcastState,
    ListState,
    MapState,
    ReducingState,
    State,
    ValueState,
)
from helios_ray.state.keyed.folding import AggregatingHandle, ReducingHandle
from helios_ray.state.keyed.handle import Handle
from helios_ray.state.keyed.lists import ListHandle
from helios_ray.state.keyed.maps import BroadcastHandle, MapHandle
from helios_ray.state.keyed.scope import NO_KEY, Scope
from helios_ray.state.keyed.tables import (
    TIMERS,
    broadcast_columns,
    broadcast_table,
    keyed_table,
    stored_columns,
    stored_keys,
    timer_table,
)
from helios_ray.state.keyed.timers import TimerQueue
from helios_ray.state.keyed.ttl import IDLE_SWEEP
from helios_ray.state.keyed.value import ValueHandle

STATE_PREFIX = "state."
BROADCAST_PREFIX = "broadcast."
_SPARE_KEYS = 4096


class KeyedBackend:
    """The keyed state of an operator subtask.

    Args:
        where: who speaks, for messages.
        keys: names of the key columns in the state's tables.
        max_parallelism: number of key groups.
        own: the key groups of this subtask.

    Example:
        >>> backend = KeyedBackend("process 'p'", ["k"])
        >>> count = backend.declare(ValueState(pa.int64(), name="count", default=0))
        >>> for slot in backend.begin(pa.record_batch({"k": ["a", "b", "a"]}), ["k"]).tolist():
        ...     backend.scope.slot = slot
        ...     count.update(count.value() + 1)
        >>> backend.end()
        >>> backend.snapshot()["state.count"].select(["key.k", "value"]).to_pylist()
        [{'key.k': 'a', 'value': 2}, {'key.k': 'b', 'value': 1}]
    """

    def __init__(
        self,
        where: str,
        keys: Sequence[str],
        max_parallelism: int = 128,
        own: range | None = None,
    ) -> None:
        self.keys = tuple(keys)
        self.scope = Scope(where)
        self.event_timers = TimerQueue()
        self.processing_timers = TimerQueue()
        self._max_parallelism = max_parallelism
        self._own = range(max_parallelism) if own is None else own
        self._states: dict[str, Handle] = {}
        self._broadcast: dict[str, BroadcastHandle] = {}
        self.key_columns: pa.RecordBatch = pa.RecordBatch.from_arrays([], names=[])
        """The key columns of the batch that ``begin`` was given."""
        self._live_keys = 0
        self._swept_at = MIN_TIMESTAMP
        self._swept = 0
        self._last_schema: tuple[pa.Schema, tuple[str, ...]] | None = None

    # ------------------------------------------------------------------------ declarations

    def declare(self, declaration: State) -> Handle:
        """The state of a declaration.

        Raises:
            ConfigError: it has no name, or another state has that name.
        """
        where, name = self.scope.where, declaration.name
        if not name:
            raise ConfigError(
                f"{where}: a {type(declaration).__name__} needs a name. Make it an attribute of "
                f"the function's class, or pass name=."
            )
        if name in self._states or name in self._broadcast:
            raise ConfigError(f"{where}: two states are named {name!r}. Rename one of them.")
        if isinstance(declaration, BroadcastState):
            self._broadcast[name] = BroadcastHandle(declaration, self.scope)
            return self._broadcast[name]
        if not self.keys:
            raise ConfigError(
                f"{where}: state {name!r} is kept per key, and the stream has none. Use key_by "
                f"before, or BroadcastState for what all subtasks share."
            )
        self._states[name] = _handle(declaration, self.scope)
        return self._states[name]

    @property
    def broadcast_states(self) -> Sequence[BroadcastHandle]:
        """The states that every subtask holds alike."""
        return list(self._broadcast.values())

    # ------------------------------------------------------------------------------- time

    def set_now(self, now: int) -> None:
        """Processing time is ``now`` (µs)."""
        scope = self.scope
        if now > scope.now:
            first = scope.now == MIN_TIMESTAMP
            scope.now = now
            if first:
                self._swept_at = now
                self._start_clock("processing")

    def set_watermark(self, timestamp: int) -> None:
        """Event time has reached ``timestamp`` (µs)."""
        scope = self.scope
        if timestamp > scope.watermark:
            first = scope.watermark == MIN_TIMESTAMP
            scope.watermark = timestamp
            if first:
                self._start_clock("event")

    def _start_clock(self, clock: str) -> None:
        for state in self._states.values():
            state.start_clock(clock)

    def next_clean_up(self) -> int | None:
        """Processing time (µs) at which ``end`` wants to be called, rows or not."""
        if not any(s.expiring and s.clock == "processing" for s in self._states.values()):
            return None
        return 0 if self.scope.now == MIN_TIMESTAMP else self._swept_at + IDLE_SWEEP

    # ----------------------------------------------------------------------------- batches

    def begin(self, data: pa.RecordBatch, columns: Sequence[str], origin: object = None) -> Slots:
        """Rows have come: the slot of the key of each.

        Args:
            data: rows.
            columns: the key columns of ``data``, one for each of the state's keys.
            origin: where they were read, for messages.

        Raises:
            MissingColumnError, PlanError: a column is not there or cannot be a key.
            SchemaChangedError: a key has another type than before.
        """
        scope = self.scope
        self.key_columns = self._key_columns(data, tuple(columns), origin)
        assert scope.index is not None
        slots = scope.index.slots(self.key_columns, self.key_columns)
        scope.enter(slots)
        return slots

    def _key_columns(
        self, data: pa.RecordBatch, columns: tuple[str, ...], origin: object
    ) -> pa.RecordBatch:
        known = self._last_schema
        if known is None or known[0] is not data.schema or known[1] != columns:
            check_keys(data.schema, columns, self.scope.where)
            self._last_schema = data.schema, columns
        arrays = [decoded(data.column(name)) for name in columns]
        index = self.scope.index
        if index is None:
            kinds = [pa.field(key, a.type) for key, a in zip(self.keys, arrays, strict=True)]
            index = self._index(pa.schema(kinds))
        for name, field, array in zip(columns, index.schema, arrays, strict=True):
            if array.type != field.type:
                place = f" (read from {origin})" if origin is not None else ""
                raise SchemaChangedError(
                    f"{self.scope.where}: key column {name!r} is {array.type}{place}, and the "
                    f"state is kept by {field.type}. Cast the column before this operator."
                )
        return pa.RecordBatch.from_arrays(arrays, schema=index.schema)

    def _index(self, schema: pa.Schema) -> KeyIndex:
        self.scope.index = KeyIndex(self.keys, schema, self._max_parallelism)
        return self.scope.index

    def flush(self) -> None:
        """Write back what was changed; the cached values are forgotten."""
        for state in self._states.values():
            state.flush()
        for broadcast in self._broadcast.values():
            broadcast.flush()

    def end(self) -> None:
        """A batch, or a round of timers, is over."""
        self.scope.slot = NO_KEY
        self.flush()
        for state in self._states.values():
            if state.expiring:
                self._swept += state.sweep()
        self._swept_at = self.scope.now
        self._forget_keys()

    def _forget_keys(self) -> None:
        """Renumber the keys once half of them have neither state nor timers.

        Whether that is so is looked at when the keys have doubled or many cells have expired.
        """
        index = self.scope.index
        if index is None or (
            len(index) <= 2 * self._live_keys + _SPARE_KEYS
            and self._swept <= self._live_keys // 2 + _SPARE_KEYS
        ):
            return
        self._swept = 0
        mask = np.zeros(len(index), np.bool_)
        for state in self._states.values():
            state.occupy(mask)
        for timers in (self.event_timers, self.processing_timers):
            mask[timers.columns()[1]] = True
        kept = np.flatnonzero(mask)
        self._live_keys = len(kept)
        if 2 * len(kept) > len(index):
            return
        places = np.full(len(index), -1, np.int64)
        places[kept] = np.arange(len(kept))
        keys = index.take_keys(kept)
        self._index(index.schema).restore(keys)
        for state in self._states.values():
            state.remap(kept, places)
        for timers in (self.event_timers, self.processing_timers):
            timers.remap(places)

    # ---------------------------------------------------------------------------- snapshot

    def track_changes(self) -> None:
        """From now on remember, per state, the keys that changed."""
        for state in self._states.values():
            state.track_changes()

    def changed_keys(self, name: str) -> pa.Table:
        """The keys whose state ``name`` changed since ``track_changes``. A key that has no
        state left may be missing from it: it is not in the snapshot either."""
        index = self.scope.index
        assert index is not None
        return index.take_keys(np.array(sorted(self._states[name].changed()), np.int64))

    def snapshot(self) -> dict[str, pa.Table]:
        """The tables of keyed state and timers; empty before the first row."""
        index = self.scope.index
        if index is None:
            return {}
        tables = {
            f"{STATE_PREFIX}{name}": keyed_table(index, state.fields, *state.contents())
            for name, state in self._states.items()
        }
        tables[TIMERS] = timer_table(index, self.event_timers, self.processing_timers)
        return tables

    def broadcast_snapshot(self) -> dict[str, pa.Table]:
        """The tables of broadcast state."""
        return {
            f"{BROADCAST_PREFIX}{name}": broadcast_table(state.fields, state.contents()[1])
            for name, state in self._broadcast.items()
        }

    def restore(self, tables: Mapping[str, pa.Table]) -> None:
        """Take up what ``snapshot`` and ``broadcast_snapshot`` gave, shared out anew.

        Raises:
            StateMismatchError: a table of a state that is not declared, of another type, or
                of keys that are not this subtask's.
        """
        where = self.scope.where
        for name, table in tables.items():
            if name.startswith(BROADCAST_PREFIX):
                broadcast = self._broadcast.get(name.removeprefix(BROADCAST_PREFIX))
                columns = broadcast_columns(where, name, table, broadcast, self._broadcast)
                columns[0].restore(np.zeros(table.num_rows, np.int64), columns[1])
        keyed = {n: t for n, t in tables.items() if n == TIMERS or n.startswith(STATE_PREFIX)}
        for name, table in keyed.items():
            keys, groups = stored_keys(where, name, table, self.keys, self._own)
            if self.scope.index is None:
                self._index(keys.schema)
            slots = self._restore_keys(name, keys, groups)
            if name == TIMERS:
                self._restore_timers(slots, table)
                continue
            state = self._states.get(name.removeprefix(STATE_PREFIX))
            found, columns_of = stored_columns(where, name, table, slots, state, self._states)
            found.restore(slots, columns_of)

    def _restore_keys(self, name: str, keys: pa.Table, groups: Slots) -> Slots:
        index = self.scope.index
        assert index is not None
        if not index.schema.equals(keys.schema):
            raise SchemaChangedError(
                f"{self.scope.where}: the keys of table {name!r} are {keys.schema}, and those of "
                f"another table of its state are {index.schema}. Cast the key columns to one type."
            )
        slots = index.restore(keys)
        if not np.array_equal(index.key_groups().to_numpy()[slots], groups):
            raise StateMismatchError(
                f"{self.scope.where}: keys of its state are in other key groups than they hash to. "
                f"Restore it with the max_parallelism it was written with "
                f"(now {self._max_parallelism})."
            )
        return slots

    def _restore_timers(self, slots: Slots, table: pa.Table) -> None:
        domains, times = table.column("namespace").to_pylist(), table.column("value").to_pylist()
        for slot, domain, timestamp in zip(slots.tolist(), domains, times, strict=True):
            timers = self.event_timers if domain == "event" else self.processing_timers
            timers.register(slot, timestamp)


def _handle(declaration: State, scope: Scope) -> Handle:
    if isinstance(declaration, ValueState):
        return ValueHandle(declaration, scope)
    if isinstance(declaration, MapState):
        return MapHandle(declaration, scope)
    if isinstance(declaration, ListState):
        return ListHandle(declaration, scope)
    if isinstance(declaration, ReducingState):
        return ReducingHandle(declaration, scope)
    if isinstance(declaration, AggregatingState):
        return AggregatingHandle(declaration, scope)
    raise ConfigError(
        f"{scope.where}: {declaration!r} is no state. Declare ValueState, ListState, MapState, "
        f"ReducingState, AggregatingState or BroadcastState."
    )
