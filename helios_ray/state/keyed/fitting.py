"""Python values to a declared Arrow type: the value as Arrow would give it back, or an error.

Why it exists: a function that writes ``1`` to a float64 state and reads it in the same batch
must see what it would see after a restore: ``1.0``. So a value is brought into its final form
when it is written, and a value that does not fit is refused there and then, where the row
that caused it is still known.

What fits: what changes no value. Integers within range, integers that a float holds exactly,
text, bytes, dates without a time of day; lists, dicts (for structs) and pairs (for maps) of
what fits. Floats are rounded to the width of their type. Nested values are copied.

May import: Arrow, numpy.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

Fit: TypeAlias = Callable[[Any], Any]

_ARROW_ERRORS = (pa.ArrowException, TypeError, ValueError, OverflowError)


class _Misfit(ValueError):
    """A value does not fit; callers turn it into an error that names the state."""


def misfit(value: Any, expected: object, why: str = "") -> ValueError:
    """The error for a value that does not fit a type."""
    reason = f": {why}" if why else ""
    return _Misfit(f"expected {expected}, got {value!r:.200} ({type(value).__name__}){reason}")


def fitter(kind: pa.DataType) -> Fit:
    """The function that brings a value into the form that ``kind`` gives back.

    The function raises ValueError for what does not fit, None included.

    Example:
        >>> fitter(pa.float64())(1), fitter(pa.list_(pa.int8()))((1, None))
        (1.0, [1, None])
        >>> fitter(pa.int8())(200)
        Traceback (most recent call last):
            ...
        helios_ray.state.keyed.fitting._Misfit: expected int8, got 200 (int): out of range
    """
    if pt.is_integer(kind):
        return _integer(kind)
    if pt.is_floating(kind):
        return _floating(kind)
    if pt.is_boolean(kind):
        return _boolean
    if pt.is_string(kind) or pt.is_large_string(kind):
        return _text
    if pt.is_binary(kind) or pt.is_large_binary(kind):
        return _bytes
    if pt.is_struct(kind):
        return _struct(kind)
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind):
        return _list(kind)
    if pt.is_map(kind):
        return _map(kind)
    return _through_arrow(kind)


def is_nested(kind: pa.DataType) -> bool:
    """Whether Python holds a value of this type as something that can be changed in place."""
    return bool(pt.is_nested(kind))


def _integer(kind: pa.DataType) -> Fit:
    signed = pt.is_signed_integer(kind)
    low = -(2 ** (kind.bit_width - 1)) if signed else 0
    high = 2 ** (kind.bit_width - signed) - 1

    def fit(value: Any) -> int:
        if type(value) is not int:
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise misfit(value, kind)
            value = int(value)
        if low <= value <= high:
            return value  # type: ignore[no-any-return]
        raise misfit(value, kind, "out of range")

    return fit


def _floating(kind: pa.DataType) -> Fit:
    narrow = None if kind.bit_width == 64 else np.dtype(kind.to_pandas_dtype()).type

    def fit(value: Any) -> float:
        if type(value) is not float:
            if isinstance(value, (bool, np.bool_)):
                raise misfit(value, kind)
            if isinstance(value, (int, np.integer)):
                exact = _exact_float(int(value), kind)
                if narrow is not None and int(narrow(exact)) != int(value):
                    raise misfit(value, kind, "not exactly a float")
                return exact
            if not isinstance(value, (float, np.floating)):
                raise misfit(value, kind)
            value = float(value)
        return value if narrow is None else float(narrow(value))

    return fit


def _exact_float(value: int, kind: pa.DataType) -> float:
    try:
        number = float(value)
    except OverflowError as error:
        raise misfit(value, kind, "out of range") from error
    if int(number) != value:
        raise misfit(value, kind, "not exactly a float")
    return number


def _boolean(value: Any) -> bool:
    if type(value) is bool:
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    raise misfit(value, "bool")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise misfit(value, "string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise misfit(value, "string", "not UTF-8") from error
    return value if type(value) is str else str.__str__(value)


def _bytes(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return value if type(value) is bytes else bytes(value)
    raise misfit(value, "binary")


def _struct(kind: pa.DataType) -> Fit:
    fields = [(f.name, fitter(f.type)) for f in kind]
    names = {name for name, _ in fields}

    def fit(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise misfit(value, kind)
        if not value.keys() <= names:
            extra = sorted(str(name) for name in value if name not in names)
            raise misfit(value, kind, f"it has no field {extra[0]!r}")
        return {
            name: None if (part := value.get(name)) is None else inner(part)
            for name, inner in fields
        }

    return fit


def _list(kind: pa.DataType) -> Fit:
    inner = fitter(kind.value_type)
    size = kind.list_size if pt.is_fixed_size_list(kind) else None

    def fit(value: Any) -> list[Any]:
        if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)):
            raise misfit(value, kind)
        if size is not None and len(value) != size:
            raise misfit(value, kind, f"it has {len(value)} items")
        return [None if item is None else inner(item) for item in value]

    return fit


def _map(kind: pa.DataType) -> Fit:
    key, item = fitter(kind.key_type), fitter(kind.item_type)

    def fit(value: Any) -> list[tuple[Any, Any]]:
        pairs = value.items() if isinstance(value, Mapping) else value
        if isinstance(pairs, (str, bytes)):
            raise misfit(value, kind)
        try:
            return [(key(k), None if v is None else item(v)) for k, v in pairs]
        except TypeError as error:
            raise misfit(value, kind) from error

    return fit


def _through_arrow(kind: pa.DataType) -> Fit:
    """Dates, times, decimals and the rest: there and back."""
    dates = pt.is_date(kind)

    def fit(value: Any) -> Any:
        if value is None:
            raise misfit(value, kind)
        if dates and isinstance(value, datetime.datetime):
            raise misfit(value, kind, "it would lose its time of day")
        if isinstance(value, bool) or (isinstance(value, (int, float)) and not pt.is_decimal(kind)):
            raise misfit(value, kind)
        try:
            return pa.array([value], kind)[0].as_py()
        except _ARROW_ERRORS as error:
            raise misfit(value, kind, str(error)) from error

    return fit


def hashable_fitter(kind: pa.DataType) -> Fit:
    """As :func:`fitter`, for the keys of a map: there is one NaN, which equals itself."""
    fit = fitter(kind)
    if not pt.is_floating(kind):
        return fit

    def one_nan(value: Any) -> float:
        number: float = fit(value)
        return math.nan if number != number else number

    return one_nan
