"""Frames as bytes: what travels in an actor call.

Why it exists: a record batch passed as an argument as it is would drag the buffers behind a
slice along and would be pinned in the object store by its reader. A frame travels as one
Arrow IPC stream per run of batches with one schema, with the marks in between in a header.

May import: elements, protocol.channels.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from helios_ray.elements import Batch, StreamElement
from helios_ray.protocol.channels import Frame

Header = tuple[Any, ...]

_WRITE = pa.ipc.IpcWriteOptions(use_threads=False)
_READ = pa.ipc.IpcReadOptions(use_threads=False)


def encode(frame: Frame) -> tuple[Header, bytes]:
    """Turn a frame into a small header and one block of bytes."""
    sink = pa.BufferOutputStream()
    writer: Any = None
    schema: pa.Schema | None = None
    layout: list[Any] = []
    for element in frame.elements:
        if not isinstance(element, Batch):
            layout.append(element)
            continue
        data = element.data
        if schema is None or not data.schema.equals(schema, check_metadata=True):
            if writer is not None:
                writer.close()
            schema = data.schema
            writer = pa.ipc.new_stream(sink, schema, options=_WRITE)
            layout.append(("schema", sink.tell()))
        writer.write_batch(data)
        layout.append(("rows", element.origin))
    if writer is not None:
        writer.close()
    payload = sink.getvalue().to_pybytes()
    header = (frame.epoch, frame.channel, frame.sequence, frame.size, tuple(layout))
    return header, payload


def decode(header: Header, payload: bytes) -> Frame:
    """Turn it back. The batches are views of ``payload``, which they keep alive."""
    epoch, channel, sequence, size, layout = header
    buffer = pa.py_buffer(payload)
    stream = pa.BufferReader(buffer)
    elements: list[StreamElement] = []
    reader: Any = None
    for entry in layout:
        if not isinstance(entry, tuple):
            elements.append(entry)
        elif entry[0] == "schema":
            if reader is not None:
                # Its end-of-stream mark stands before the next stream.
                for _ in reader:
                    raise AssertionError("rows beyond the layout")
            reader = pa.ipc.open_stream(stream, options=_READ)
        else:
            elements.append(Batch(reader.read_next_batch(), entry[1]))
    return Frame(epoch, channel, sequence, tuple(elements), size)
