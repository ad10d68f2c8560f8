"""JSON Lines: how a line of JSON becomes a row.

Why it exists: one JSON object a line is what everything can write. What it promises: a field
that is absent is null; a field nobody expected, or a value of another type, names the file,
the byte, the field, what was expected and what came.

May import: errors, and the rest of this package.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pa_json

from helios_ray.connectors.files.lines import LineFormat
from helios_ray.errors import CorruptInputError, DataError, SchemaChangedError

_OPEN_BRACE = ord("{")
_LINE_FEED = 0x0A


def _spoken(kind: Any) -> Any:
    """The type Arrow's JSON reader can give that is cast to ``kind`` afterwards."""
    types = pa.types
    if types.is_dictionary(kind):
        return _spoken(kind.value_type)
    return pa.string() if types.is_date(kind) else kind


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are all different."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("expected each field once")
    return value


class JsonLines(LineFormat):
    """Decodes the records of one JSON Lines file.

    Args:
        schema: the fields to read and their types, or None to infer them.
        extras_allowed: pass over fields that ``schema`` does not have.
    """

    def __init__(self, schema: pa.Schema | None, *, extras_allowed: bool) -> None:
        self._schema = schema
        self._behaviour = "ignore" if extras_allowed else "error"
        self._options = self._parsing(schema, self._behaviour)

    @staticmethod
    def _parsing(schema: pa.Schema | None, behaviour: str) -> pa_json.ParseOptions:
        if schema is None:
            return pa_json.ParseOptions()
        # Nulls are ruled on afterwards, where the message can name the place.
        fields = [pa.field(field.name, _spoken(field.type)) for field in schema]
        return pa_json.ParseOptions(
            explicit_schema=pa.schema(fields), unexpected_field_behavior=behaviour
        )

    def is_blank(self, record: bytes) -> bool:
        return not record.strip()

    def rows(self, data: bytes) -> pa.RecordBatch:
        # Arrow's reader does not look at the encoding, and it aborts the process on a block
        # whose first value is a bare null: both are ruled out before it sees the block.
        data.decode("utf-8")
        octets = np.frombuffer(data, np.uint8)
        starts = np.flatnonzero(octets[:-1] == _LINE_FEED) + 1
        if not len(starts):
            data = data.strip() + b"\n"
            octets = np.frombuffer(data, np.uint8)
        starts = np.concatenate([[0], starts]).astype(np.int64)
        opening, following = octets[starts], octets[np.minimum(starts + 1, len(octets) - 1)]
        # Lines of blanks are read one by one: counted with the others they could hide a line
        # that holds two objects.
        blank = (opening == _LINE_FEED) | ((opening == 0x0D) & (following == _LINE_FEED))
        if not bool(np.all((opening == _OPEN_BRACE) | blank)) or bool(np.all(blank)):
            raise ValueError("a line does not start with '{'")
        first = starts[np.argmin(blank)]
        return self._read(data[first:], self._options)

    @staticmethod
    def _read(data: bytes, options: pa_json.ParseOptions) -> pa.RecordBatch:
        table = pa_json.read_json(
            pa.BufferReader(data),
            read_options=pa_json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=options,
        )
        return table.combine_chunks().to_batches()[0]

    def blame(self, record: bytes, where: str) -> DataError:
        shown = record[:120].decode("utf-8", "replace").rstrip("\r\n")
        try:
            value = json.loads(record.decode("utf-8"), object_pairs_hook=_once)
        except ValueError as error:
            return CorruptInputError(
                f"{where}: expected one JSON object on a line, got {shown!r}: {error}. Mend the "
                f"line."
            )
        if not isinstance(value, dict):
            return CorruptInputError(
                f"{where}: expected a JSON object, got {shown!r}. Wrap values in an object, one a "
                f"line."
            )
        expected = self._schema if self._schema is not None else pa.schema([])
        extra = [name for name in value if expected.get_field_index(name) < 0]
        if extra and self._behaviour == "error":
            return SchemaChangedError(
                f"{where}: expected the fields {expected.names}, got {extra[0]!r} besides. Pass "
                f"columns= or schema= with the fields to read, and others are passed over."
            )
        for field in expected:
            options = self._parsing(pa.schema([field]), "ignore")
            try:
                self._read(record, options)
            except pa.ArrowInvalid:
                return SchemaChangedError(
                    f"{where}: expected field {field.name!r} to be {field.type}, got "
                    f"{json.dumps(value.get(field.name))[:120]}. Mend the line, or pass schema= "
                    f"with a type that holds it (types are taken from the start of the first "
                    f"file otherwise)."
                )
        return CorruptInputError(
            f"{where}: expected one JSON object, got {shown!r}. Mend the line."
        )
