"""The key hash: stable for good, equal for equal values whatever their Arrow type."""

from __future__ import annotations

import datetime as dt
import struct
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.errors import MissingColumnError, PlanError
from helios_ray.state.hashing import NULL_HASH, check_keys, hash_array, key_hash

MASK = 2**64 - 1
GOLDEN, P = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93


def mix(z: int) -> int:
    """SplitMix64's finalizer in Python integers: the definition, told a second time."""
    z = (z + GOLDEN) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def bytes_hash(data: bytes) -> int:
    h = 0
    for at in range(0, len(data), 8):
        word = int.from_bytes(data[at : at + 8].ljust(8, b"\0"), "little")
        h = (h * P + mix(word)) & MASK
    return mix(h ^ (len(data) * GOLDEN & MASK))


def hashes(values: list[Any], kind: pa.DataType) -> list[int]:
    return hash_array(pa.array(values, kind)).tolist()


GOLDEN_HASHES = [
    (
        pa.array([0, 1, -1, 2**40]),
        [0xE220A8397B1DCDAF, 0x910A2DEC89025CC1, 0xE4D971771B652C20, 0x1FDD7128F310C389],
    ),
    (
        pa.array([0.0, 1.5, float("nan"), float("inf")]),
        [0xE220A8397B1DCDAF, 0xD6DAB18E1392608A, 0xC72971D82E15BB46, 0x249E5410C2F97D99],
    ),
    (
        pa.array(["", "a", "carrier", "exactly8", "nine char", "ü" * 40]),
        [
            0xE220A8397B1DCDAF,
            0x0038D5F7B8A7C7FC,
            0x17EE5F2A8A865F21,
            0xF68D1537C3120F4F,
            0x40BD7E39FD70B881,
            0xEC91DA795DB7F370,
        ],
    ),
    (pa.array(["x" * 1000]), [0xB7E0E3CB41B22628]),
    (pa.array([dt.date(2013, 1, 1)]), [0xC2D4B737258FAAE5]),
    (pa.array([dt.datetime(2013, 1, 1, 5, 17)]), [0x679B9A696F75CBB5]),
    (pa.array([dt.time(5, 17)]), [0xA68EA0F986D311B8]),
    (
        pa.array([Decimal("1.50"), Decimal("0.00"), Decimal("120")]),
        [0x5A16DEC14D521C8F, 0x865DCD5032668B1, 0x950B0708DDF0076E],
    ),
    (pa.array([None], pa.string()), [0x6E756C6C6E756C6C]),
]


@pytest.mark.parametrize(("array", "expected"), GOLDEN_HASHES)
def test_hashes_written_into_checkpoints_never_change(array: pa.Array, expected: list[int]) -> None:
    assert hash_array(array).tolist() == expected


def test_composite_hash_never_changes_and_depends_on_the_order_of_columns() -> None:
    batch = pa.record_batch({"a": [1, 2, None], "b": ["x", None, None]})
    assert key_hash(batch, ["a", "b"]).tolist() == [
        0x7DC6E11C1C8E68BE,
        0x9CEA5C72FF8C06A7,
        0x26AA8F764FEB9EB7,
    ]
    assert key_hash(batch, ["b", "a"]).tolist()[0] == 0xD430E0F862EC6372


@given(
    st.lists(
        st.one_of(st.none(), st.binary(max_size=40), st.binary(min_size=250, max_size=300)),
        max_size=20,
    ),
    st.integers(0, 5),
)
def test_bytes_hash_is_as_defined_for_slices_nulls_and_long_values(
    values: list[bytes | None], skip: int
) -> None:
    expected = [int(NULL_HASH) if v is None else bytes_hash(v) for v in values[skip:]]
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        assert hash_array(pa.array(values, kind)[skip:]).tolist() == expected
    encoded = pa.array(values, pa.binary()).dictionary_encode()[skip:]
    assert hash_array(encoded).tolist() == expected


@given(st.lists(st.one_of(st.none(), st.text(max_size=20)), max_size=20), st.integers(0, 5))
def test_strings_hash_equally_in_every_physical_type(values: list[str | None], skip: int) -> None:
    expected = [int(NULL_HASH) if v is None else bytes_hash(v.encode()) for v in values[skip:]]
    for kind in (
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
    ):
        assert hash_array(pa.array(values, pa.string()).cast(kind)[skip:]).tolist() == expected


@given(st.lists(st.one_of(st.none(), st.integers(0, 127)), max_size=20))
def test_integers_hash_equally_in_every_width(values: list[int | None]) -> None:
    expected = [int(NULL_HASH) if v is None else mix(v) for v in values]
    for kind in (
        pa.int8(),
        pa.int16(),
        pa.int32(),
        pa.int64(),
        pa.uint8(),
        pa.uint16(),
        pa.uint32(),
        pa.uint64(),
    ):
        assert hashes(values, kind) == expected


def test_negative_integers_are_sign_extended() -> None:
    assert hashes([-5], pa.int8()) == hashes([-5], pa.int64()) == [mix(-5 & MASK)]


def test_floats_have_one_zero_and_one_nan_and_agree_across_widths() -> None:
    odd_nan = struct.unpack("<d", struct.pack("<Q", 0xFFF8000000000123))[0]
    wide = hashes([0.0, -0.0, float("nan"), odd_nan, 1.5], pa.float64())
    assert wide[0] == wide[1]
    assert wide[2] == wide[3]
    assert hashes([1.5], pa.float32()) == hashes([np.float16(1.5)], pa.float16()) == [wide[4]]


def test_one_instant_hashes_equally_in_every_unit_and_zone() -> None:
    moment = dt.datetime(2013, 1, 1, 5, 17)
    found = {hashes([moment], pa.timestamp(unit))[0] for unit in ("s", "ms", "us", "ns")}
    zoned = pa.array([moment], pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
    assert found == set(hash_array(zoned).tolist())
    assert hashes([dt.date(2013, 1, 1)], pa.date32()) == hashes([dt.date(2013, 1, 1)], pa.date64())
    assert hashes([dt.time(5, 17)], pa.time32("s")) == hashes([dt.time(5, 17)], pa.time64("ns"))


def test_decimals_hash_by_value_not_by_scale() -> None:
    short, long = Decimal("1.5"), Decimal("1.500")
    assert hashes([short], pa.decimal128(5, 1)) == hashes([long], pa.decimal256(30, 3))
    assert hashes([short], pa.decimal32(5, 1)) == hashes([short], pa.decimal64(9, 2))
    assert hashes([Decimal("0.00")], pa.decimal128(5, 2)) == hashes([Decimal(0)], pa.decimal128(5))
    assert hashes([Decimal(120)], pa.decimal128(5)) != hashes([Decimal(12)], pa.decimal128(5))


def test_a_null_inside_a_dictionary_is_a_null() -> None:
    array = pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array(["a", None]))
    assert hash_array(array).tolist() == [bytes_hash(b"a"), int(NULL_HASH), int(NULL_HASH)]


def test_run_end_encoding_does_not_matter() -> None:
    array = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array([7, 8]))
    assert hash_array(array).tolist() == [mix(7), mix(7), mix(8)]


def test_low_bits_are_even_over_sequential_integers_and_texts_that_differ_in_one_byte() -> None:
    texts = [f"{chr(33 + i % 90)}0000000{chr(33 + i // 90)}0000000" for i in range(8100)]
    for array in (pa.array(range(12_800)), pa.array(texts)):
        counts = np.bincount((hash_array(array) % np.uint64(128)).astype(np.int64), minlength=128)
        assert counts.min() > 0.5 * len(array) / 128
        assert counts.max() < 1.6 * len(array) / 128


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.int8()),
        pa.struct([("a", pa.int8())]),
        pa.map_(pa.int8(), pa.int8()),
        pa.month_day_nano_interval(),
    ],
)
def test_a_type_that_cannot_be_a_key_is_refused_with_the_way_out(kind: pa.DataType) -> None:
    batch = pa.RecordBatch.from_arrays([pa.nulls(1, kind)], names=["bad"])
    with pytest.raises(PlanError, match=r"'bad'.*cannot be a key.*Make a column"):
        key_hash(batch, ["bad"])


def test_missing_and_repeated_keys_are_refused_when_planned() -> None:
    schema = pa.schema([("carrier", pa.string())])
    with pytest.raises(MissingColumnError, match="Did you mean 'carrier'"):
        check_keys(schema, ["carier"])
    with pytest.raises(PlanError, match="at least one key"):
        check_keys(schema, [])
    with pytest.raises(PlanError, match="twice"):
        check_keys(schema, ["carrier", "carrier"])


def test_empty_batches_have_no_hashes() -> None:
    for kind in (pa.int64(), pa.string(), pa.decimal128(5, 2), pa.bool_(), pa.null()):
        assert len(hash_array(pa.array([], kind))) == 0
