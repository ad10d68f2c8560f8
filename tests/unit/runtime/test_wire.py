"""A frame that went through bytes is the frame that was sent."""

from __future__ import annotations

import pickle
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.elements import (
    Batch,
    CheckpointBarrier,
    EndOfInput,
    Idle,
    Origin,
    StreamElement,
    Watermark,
)
from helios_ray.identifiers import ChannelId, TaskId
from helios_ray.protocol.channels import Frame
from helios_ray.runtime.wire import decode, encode

CHANNEL = ChannelId(3, TaskId("up", 0), TaskId("down", 1))

COLUMNS: dict[str, tuple[pa.DataType, Any]] = {
    "int": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "text": (pa.string(), st.text(max_size=5)),
    "bytes": (pa.binary(), st.binary(max_size=5)),
    "list": (pa.list_(pa.int8()), st.lists(st.integers(-128, 127), max_size=3)),
    "struct": (
        pa.struct([("a", pa.bool_())]),
        st.fixed_dictionaries({"a": st.none() | st.booleans()}),
    ),
    "word": (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["a", "b"])),
    "time": (pa.timestamp("us", tz="UTC"), st.integers(0, 2**40)),
}


@st.composite
def record_batches(draw: st.DrawFn) -> pa.RecordBatch:
    names = draw(st.lists(st.sampled_from(sorted(COLUMNS)), unique=True, max_size=3))
    rows = draw(st.integers(0, 5))
    fields, arrays = [], []
    for name in names:
        kind, values = COLUMNS[name]
        column = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        fields.append(pa.field(name, kind, metadata={"unit": "s"} if rows == 3 else None))
        arrays.append(pa.array(column, kind))
    batch = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
    # A slice must travel as itself, without the rows around it.
    start = draw(st.integers(0, max(0, batch.num_rows)))
    return batch.slice(start)


elements = st.one_of(
    st.builds(
        Batch,
        record_batches(),
        st.none() | st.builds(Origin, st.text(max_size=4), st.text(max_size=4)),
    ),
    st.builds(Watermark, st.integers(-(2**63), 2**63 - 1)),
    st.just(Idle()),
    st.builds(CheckpointBarrier, st.integers(1, 2**40)),
    st.just(EndOfInput()),
)


def same(one: StreamElement, other: StreamElement) -> bool:
    if isinstance(one, Batch) and isinstance(other, Batch):
        return bool(
            one.data.schema.equals(other.data.schema, check_metadata=True)
            and one.data.equals(other.data)
            and one.origin == other.origin
        )
    return one == other


@given(
    elements=st.lists(elements, max_size=8),
    epoch=st.integers(1, 2**31),
    sequence=st.integers(0, 2**40),
)
def test_decode_gives_back_what_encode_took(
    elements: list[StreamElement], epoch: int, sequence: int
) -> None:
    frame = Frame(epoch, CHANNEL, sequence, tuple(elements), 4711)
    header, payload = encode(frame)
    # As Ray carries it: both parts are pickled.
    back = decode(*pickle.loads(pickle.dumps((header, payload))))
    assert (back.epoch, back.channel, back.sequence, back.size) == (epoch, CHANNEL, sequence, 4711)
    assert len(back.elements) == len(elements)
    assert all(same(a, b) for a, b in zip(elements, back.elements, strict=True))


def test_a_slice_does_not_drag_the_rows_around_it_along() -> None:
    whole = pa.record_batch({"n": pa.array(range(1_000_000), pa.int64())})
    _, payload = encode(Frame(1, CHANNEL, 0, (Batch(whole.slice(500_000, 10)),), 80))
    assert len(payload) < 2_000


def test_one_schema_is_written_once_for_a_run_of_batches() -> None:
    batch = Batch(pa.record_batch({f"column-{n}": [n] for n in range(100)}))
    _, one = encode(Frame(1, CHANNEL, 0, (batch,), 0))
    _, ten = encode(Frame(1, CHANNEL, 0, (batch,) * 10, 0))
    schema = batch.data.schema.serialize().size
    assert len(ten) < 10 * len(one) - 8 * schema


@pytest.mark.parametrize("cut", [1, 100])
def test_a_frame_that_is_cut_short_does_not_pass_for_a_whole_one(cut: int) -> None:
    batch = Batch(pa.record_batch({"n": pa.array(range(100), pa.int64())}))
    header, payload = encode(Frame(1, CHANNEL, 0, (batch, batch), 0))
    with pytest.raises((pa.ArrowInvalid, OSError, StopIteration)):
        decode(header, payload[: len(payload) - 400 - cut])
