"""What each kind of state promises, said again with Python dicts: one entry per namespace."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from helios_ray.state.keyed.ttl import StateTtl

VALUES = st.text("aü", max_size=2)
NAMES = st.integers(0, 3)


class Model:
    """Entries of one key, in order: namespace to [value, deadline]."""

    def __init__(self, ttl: StateTtl | None) -> None:
        self.ttl = ttl
        self.entries: dict[Any, list[Any]] = {}

    def deadline(self, now: int | None) -> int | None:
        return None if self.ttl is None or now is None else now + self.ttl.microseconds

    def live(self, now: int | None) -> dict[Any, list[Any]]:
        self.entries = {
            name: entry
            for name, entry in self.entries.items()
            if entry[1] is None or now is None or entry[1] > now
        }
        return self.entries

    def write(self, name: Any, value: Any, now: int | None) -> None:
        self.live(now)
        if value is None:
            self.entries.pop(name, None)
        elif name in self.entries:
            self.entries[name][:] = [value, self.deadline(now)]
        else:
            self.entries[name] = [value, self.deadline(now)]

    def read(self, names: Any, now: int | None) -> list[Any]:
        found = {name: entry for name, entry in self.live(now).items() if name in names}
        if self.ttl is not None and self.ttl.refresh == "read":
            for entry in found.values():
                entry[1] = self.deadline(now)
        return [entry[0] for entry in found.values()]

    def start_clock(self, now: int) -> None:
        for entry in self.entries.values():
            entry[1] = self.deadline(now)


def value_step(op: tuple[Any, ...], model: Model, now: int | None) -> Any:
    match op:
        case ("get",):
            return (model.read([None], now) or [None])[0]
        case ("set", value):
            return model.write(None, value, now)
        case ("clear",):
            return model.write(None, None, now)
    raise AssertionError(op)


def value_call(op: tuple[Any, ...], handle: Any) -> Any:
    match op:
        case ("get",):
            return handle.value()
        case ("set", value):
            return handle.update(value)
        case ("clear",):
            return handle.clear()
    raise AssertionError(op)


VALUE_OPS = st.one_of(
    st.just(("get",)),
    st.just(("clear",)),
    st.tuples(st.just("set"), st.none() | VALUES),
)


def map_step(op: tuple[Any, ...], model: Model, now: int | None) -> Any:
    match op:
        case ("get", name):
            return (model.read([name], now) or ["none"])[0]
        case ("put", name, value):
            return model.write(name, value, now)
        case ("in", name):
            return name in model.live(now)
        case ("items",):
            names = list(model.live(now))
            return list(zip(names, model.read(names, now), strict=True))
        case ("keys",):
            return list(model.live(now))
        case ("clear",):
            model.entries.clear()
            return None
    raise AssertionError(op)


def map_call(op: tuple[Any, ...], handle: Any) -> Any:
    match op:
        case ("get", name):
            return handle.get(name, "none")
        case ("put", name, value):
            return handle.put(name, value)
        case ("in", name):
            return name in handle
        case ("items",):
            return handle.items()
        case ("keys",):
            assert len(handle) == len(handle.keys())
            return list(handle)
        case ("clear",):
            return handle.clear()
    raise AssertionError(op)


MAP_OPS = st.one_of(
    st.tuples(st.sampled_from(["get", "in"]), NAMES),
    st.tuples(st.just("put"), NAMES, st.none() | VALUES),
    st.sampled_from([("items",), ("keys",), ("clear",)]),
)


def list_step(op: tuple[Any, ...], model: Model, now: int | None) -> Any:
    def add(value: str) -> None:
        model.write(max(model.entries, default=-1) + 1, value, now)

    match op:
        case ("get",):
            return model.read(list(model.entries), now)
        case ("add", value):
            return add(value)
        case ("update", values):
            model.entries.clear()
            for value in values:
                add(value)
            return None
        case ("clear",):
            model.entries.clear()
            return None
    raise AssertionError(op)


def list_call(op: tuple[Any, ...], handle: Any) -> Any:
    match op:
        case ("get",):
            return handle.get()
        case ("add", value):
            return handle.add(value)
        case ("update", values):
            return handle.update(values)
        case ("clear",):
            return handle.clear()
    raise AssertionError(op)


LIST_OPS = st.one_of(
    st.sampled_from([("get",), ("clear",)]),
    st.tuples(st.just("add"), VALUES),
    st.tuples(st.just("update"), st.lists(VALUES, max_size=3)),
)


def fold_step(op: tuple[Any, ...], model: Model, now: int | None) -> Any:
    match op:
        case ("get",):
            return (model.read([None], now) or [None])[0]
        case ("add", value):
            before = model.read([None], now)
            return model.write(None, before[0] + value if before else value, now)
        case ("clear",):
            return model.write(None, None, now)
    raise AssertionError(op)


def fold_call(op: tuple[Any, ...], handle: Any) -> Any:
    return getattr(handle, op[0])(*op[1:])


FOLD_OPS = st.one_of(st.sampled_from([("get",), ("clear",)]), st.tuples(st.just("add"), VALUES))
