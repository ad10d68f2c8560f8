"""What the backend does for all states: change tracking, the shape of tables, renumbering."""

from __future__ import annotations

from datetime import timedelta
from unittest.mock import patch

import pyarrow as pa
import pytest

from helios_ray.errors import ConfigError, DataError
from helios_ray.state.keyed.backend import KeyedBackend
from helios_ray.state.keyed.declarations import ListState, MapState, ValueState
from helios_ray.state.keyed.ttl import StateTtl


def test_the_tables_can_be_read_without_this_package() -> None:
    backend = KeyedBackend("process 'p'", ["user", "day"], 4)
    total = backend.declare(ValueState(pa.float64(), name="total", ttl=timedelta(seconds=1)))
    visits = backend.declare(ListState(pa.string(), name="visits"))
    pages = backend.declare(MapState(pa.string(), pa.int64(), name="pages"))
    backend.set_now(5)
    data = pa.record_batch({"user": ["ann", "bob"], "day": [1, 2]})
    for slot in backend.begin(data, ["user", "day"]).tolist():
        backend.scope.slot = slot
        total.update(1.5)  # type: ignore[attr-defined]
        visits.add("x")  # type: ignore[attr-defined]
        pages.put("/home", 1)  # type: ignore[attr-defined]
        backend.event_timers.register(slot, 100 - slot)
    backend.end()
    tables = backend.snapshot()
    key = [("key_group", pa.int32()), ("key.user", pa.string()), ("key.day", pa.int64())]
    assert tables["state.total"].schema == pa.schema(
        [*key, ("namespace", pa.null()), ("value", pa.float64()), ("expires", pa.int64())]
    )
    assert tables["state.total"]["expires"].to_pylist() == [1_000_005] * 2
    assert tables["state.visits"].schema == pa.schema(
        [*key, ("namespace", pa.int64()), ("value", pa.string())]
    )
    assert tables["state.pages"].schema == pa.schema(
        [*key, ("namespace", pa.string()), ("value", pa.int64())]
    )
    timers = tables["timers"].select(["key.user", "namespace", "value"]).to_pylist()
    assert timers == [
        {"key.user": "bob", "namespace": "event", "value": 99},
        {"key.user": "ann", "namespace": "event", "value": 100},
    ]


def test_changed_keys_are_known_across_renumbering() -> None:
    backend = KeyedBackend("process 'p'", ["k"])
    held = backend.declare(ValueState(pa.int64(), name="held"))

    def write(keys: list[int], value: int | None) -> None:
        for slot in backend.begin(pa.record_batch({"k": keys}), ["k"]).tolist():
            backend.scope.slot = slot
            held.update(value)  # type: ignore[attr-defined]
        backend.end()

    write(list(range(10)), 1)
    backend.track_changes()
    assert backend.changed_keys("held").num_rows == 0
    with patch("helios_ray.state.keyed.backend._SPARE_KEYS", 0):
        write([7, 3], 2)
        write([0, 1, 2, 4, 5, 6, 8, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21], None)
    assert backend.scope.size == 2
    assert sorted(backend.changed_keys("held")["k"].to_pylist()) == [3, 7]


def test_state_is_not_used_without_a_key_nor_declared_without_a_name() -> None:
    backend = KeyedBackend("process 'p'", ["k"])
    held = backend.declare(ValueState(pa.int64(), name="held"))
    with pytest.raises(DataError, match="'held' was used where no key is current"):
        held.value()  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="'held' was used where no key is current"):
        held.update(1)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="needs a name"):
        backend.declare(ValueState(pa.int64()))


def test_declarations_are_checked_where_they_are_written() -> None:
    with pytest.raises(ConfigError, match=r"needs an Arrow type such as pa.int64\(\), got 'int'"):
        ValueState("int")
    with pytest.raises(ConfigError, match="ttl must be a timedelta or a StateTtl, got 5"):
        ValueState(pa.int64(), ttl=5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be a key"):
        MapState(pa.list_(pa.int64()), pa.int64())
    with pytest.raises(ConfigError, match="duration must be a positive timedelta"):
        StateTtl(duration=timedelta(0))
    with pytest.raises(ConfigError, match="refresh must be 'write' or 'read', got 'often'"):
        StateTtl(duration=timedelta(1), refresh="often")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"the default of state 'n'.*expected int64, got 'x'"):
        KeyedBackend("p", ["k"]).declare(ValueState(pa.int64(), default="x", name="n"))


def test_timers_stay_with_their_keys_when_keys_are_renumbered() -> None:
    backend = KeyedBackend("process 'p'", ["k"])
    data = pa.record_batch({"k": ["gone", "also gone", "late", "soon"]})
    slots = dict(zip(data["k"].to_pylist(), backend.begin(data, ["k"]).tolist(), strict=True))
    backend.event_timers.register(slots["late"], 20)
    backend.event_timers.register(slots["soon"], 10)
    backend.processing_timers.register(slots["late"], 5)
    with patch("helios_ray.state.keyed.backend._SPARE_KEYS", 0):
        backend.end()
    assert backend.scope.size == 2
    assert [(t, backend.scope.key(s)) for t, s in backend.event_timers.due(99)] == [
        (10, "soon"),
        (20, "late"),
    ]
    assert [(t, backend.scope.key(s)) for t, s in backend.processing_timers.due(99)] == [
        (5, "late")
    ]
