"""``pyarrow.compute`` expressions as kernel calls.

Why it exists: an Arrow expression is opaque in Python; the one public, specified form it
can be written in is Substrait. This module reads the small part of that form in which
nothing is lost (columns, literals, comparisons, Kleene logic, checked and unchecked
arithmetic, null tests) into our own expression. Everything else (set membership, whose null
semantics Substrait drops; casts; functions Substrait does not know; types it cannot name)
is evaluated by Arrow's own engine instead, which is always right and costs about 0.3 ms a
batch. Whoever needs neither uses ``helios_ray.expressions.col``.

Source: the Substrait specification, messages ExtendedExpression, Expression and
SimpleExtensionDeclaration (https://substrait.io); Protocol Buffers wire format.

May import: errors, operators.expressions, Arrow.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.acero as acero
import pyarrow.compute as pc

from helios_ray.errors import PlanError
from helios_ray.operators.expressions import Evaluator, Expression, _call, col, lit
from helios_ray.state.hashing import missing_column

try:
    import pyarrow.substrait as substrait
except ImportError:  # an Arrow built without it: every expression goes to Arrow's engine
    substrait = None

_BINARY = {
    "equal": "equal",
    "not_equal": "not_equal",
    "lt": "less",
    "lte": "less_equal",
    "gt": "greater",
    "gte": "greater_equal",
    "and": "and_kleene",
    "or": "or_kleene",
}
_UNARY = {"not": "invert", "is_null": "is_null", "is_not_null": "is_valid"}
_ARITHMETIC = {"add", "subtract", "multiply", "divide"}


class _Unsupported(Exception):
    """The expression has a part that is not translated."""


def compile_arrow_expression(
    expression: pc.Expression, schema: pa.Schema, where: str = "expression"
) -> Evaluator:
    """The fastest exact evaluator for an Arrow expression.

    Args:
        expression: unbound, as ``pc.field("price") > 100`` makes it.
        schema: of the batches to come.
        where: who asks, for messages.

    Raises:
        MissingColumnError: a column is not in ``schema``.
        PlanError: the types do not fit.

    Example:
        >>> batch = pa.record_batch({"price": [90, None, 120]})
        >>> compile_arrow_expression(pc.field("price") > 100, batch.schema)(batch).to_pylist()
        [False, None, True]
    """
    own = translate(expression, schema)
    if own is not None:
        return own.compile(schema, where)
    evaluate = _by_engine(expression)
    try:
        evaluate(schema.empty_table())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, KeyError) as error:
        unmatched = re.search(r"No match for FieldRef\.Name\((.*?)\) in ", str(error))
        if unmatched:
            raise missing_column(unmatched.group(1), schema, where) from None
        reason = str(error).splitlines()[0]
        raise PlanError(f"{where}: {expression} cannot be computed on this stream: {reason}") from (
            error
        )
    return evaluate


def translate(expression: pc.Expression, schema: pa.Schema) -> Expression | None:
    """Our own form of an Arrow expression, or None where that might not be exact."""
    if substrait is None:
        return None
    try:
        message = bytes(substrait.serialize_expressions([expression], ["e"], schema))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, KeyError):
        return None
    try:
        return _extended(message, schema)
    except (_Unsupported, IndexError, ValueError, struct.error):
        return None


def _by_engine(expression: pc.Expression) -> Evaluator:
    options = acero.ProjectNodeOptions([expression], ["e"])

    def evaluate(data: Any) -> pa.Array:
        table = pa.Table.from_batches([data]) if isinstance(data, pa.RecordBatch) else data
        source = acero.Declaration("table_source", acero.TableSourceNodeOptions(table))
        project = acero.Declaration("project", options, inputs=[source])
        column = project.to_table(use_threads=False).column(0)
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

    return evaluate


# ------------------------------------------------------------------------------ wire format


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: int for varints, bytes for everything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise _Unsupported(f"wire type {wire}")
        if at + size > len(data):
            raise _Unsupported("message ends early")
        yield number, data[at : at + size]
        at += size


def _only(data: bytes) -> tuple[int, Any]:
    found = list(_fields(data))
    if len(found) != 1:
        raise _Unsupported(f"expected one field, got {len(found)}")
    return found[0]


# -------------------------------------------------------------------------------- messages


def _extended(message: bytes, schema: pa.Schema) -> Expression:
    functions: dict[int, str] = {}
    expressions: list[bytes] = []
    for number, value in _fields(message):
        if number == 2:  # SimpleExtensionDeclaration
            for kind, declaration in _fields(value):
                if kind == 3:  # ExtensionFunction
                    parts = dict(_fields(declaration))
                    # "equal:any_any" is the name with the types it is declared for
                    functions[parts.get(2, 0)] = parts[3].decode().split(":")[0]
        elif number == 3:  # ExpressionReference
            expressions += [v for n, v in _fields(value) if n == 1]
    if len(expressions) != 1:
        raise _Unsupported(f"{len(expressions)} expressions")
    return _expression(expressions[0], functions, schema)


def _expression(data: bytes, functions: dict[int, str], schema: pa.Schema) -> Expression:
    number, value = _only(data)
    if number == 1:
        return _literal(value)
    if number == 2:
        return _field_reference(value, schema)
    if number == 3:
        return _scalar_function(value, functions, schema)
    raise _Unsupported(f"expression kind {number}")


def _field_reference(data: bytes, schema: pa.Schema) -> Expression:
    parts = dict(_fields(data))
    if set(parts) - {1, 4}:  # direct reference from the root; nothing else
        raise _Unsupported("reference")
    number, struct_field = _only(parts[1])
    if number != 2:
        raise _Unsupported("reference segment")
    segment = dict(_fields(struct_field))
    if 2 in segment:  # a field within a field
        raise _Unsupported("nested reference")
    name = schema.field(segment.get(1, 0)).name
    return col(name)


def _scalar_function(data: bytes, functions: dict[int, str], schema: pa.Schema) -> Expression:
    arguments: list[Expression] = []
    options: dict[str, list[str]] = {}
    anchor = 0
    for number, value in _fields(data):
        if number == 1:
            anchor = value
        elif number == 4:  # FunctionArgument, of which only a value is an expression
            kind, argument = _only(value)
            if kind != 3:
                raise _Unsupported("argument")
            arguments.append(_expression(argument, functions, schema))
        elif number == 5:
            option = list(_fields(value))
            key = next(v for n, v in option if n == 1).decode()
            options[key] = [v.decode() for n, v in option if n == 2]
        elif number != 3:  # 3 is the output type, which the kernel decides
            raise _Unsupported(f"function field {number}")
    name = functions.get(anchor, "")
    if name in _ARITHMETIC and len(arguments) == 2:
        overflow = options.pop("overflow", None)
        if options or overflow not in (["ERROR"], ["SILENT"]):
            raise _Unsupported(f"options of {name}")
        return _call(name + "_checked" if overflow == ["ERROR"] else name, *arguments)
    if options:
        raise _Unsupported(f"options of {name}")
    if name in _BINARY and len(arguments) == 2:
        return _call(_BINARY[name], *arguments)
    if name in _UNARY and len(arguments) == 1:
        return _call(_UNARY[name], *arguments)
    raise _Unsupported(f"function {name} of {len(arguments)} arguments")


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _literal(data: bytes) -> Expression:
    fields = [(n, v) for n, v in _fields(data) if n not in (50, 51)]  # nullable, variation
    if len(fields) != 1:
        raise _Unsupported("literal")
    number, value = fields[0]
    if number == 1:
        return lit(bool(value), pa.bool_())
    widths = {2: (8, pa.int8()), 3: (16, pa.int16()), 5: (32, pa.int32()), 7: (64, pa.int64())}
    if number in widths:
        bits, kind = widths[number]
        return lit(_signed(value, bits), kind)
    if number == 10:
        return lit(struct.unpack("<f", value)[0], pa.float32())
    if number == 11:
        return lit(struct.unpack("<d", value)[0], pa.float64())
    if number == 12:
        return lit(value.decode(), pa.string())
    if number == 16:
        return lit(pa.scalar(_signed(value, 32), pa.int32()).cast(pa.date32()))
    raise _Unsupported(f"literal kind {number}")
