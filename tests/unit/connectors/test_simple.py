"""PrintSink prints rows, as many as asked for."""

from __future__ import annotations

import pyarrow as pa
import pytest

from helios_ray.connectors.base import Guarantee, SinkContext
from helios_ray.connectors.simple import PrintSink
from helios_ray.errors import ConfigError


def rows(*values: int) -> pa.RecordBatch:
    return pa.record_batch({"x": list(values)})


def context(parallelism: int) -> SinkContext:
    return SinkContext(job="j", sink_uid="out", subtask=1, parallelism=parallelism, epoch=1)


def test_every_row_is_a_line_with_the_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    sink = PrintSink("row ")
    sink.open(context(1))
    sink.write(rows(1, 2))
    sink.close()
    assert capsys.readouterr().out == "row {'x': 1}\nrow {'x': 2}\n"


def test_subtasks_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    sink = PrintSink()
    sink.open(context(2))
    sink.write(rows(1))
    assert capsys.readouterr().out == "1> {'x': 1}\n"


def test_the_limit_counts_across_batches_and_says_what_it_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sink = PrintSink(limit=3)
    sink.open(context(1))
    for batch in (rows(1, 2), rows(3, 4), rows(5)):
        sink.write(batch)
    sink.close()
    out = capsys.readouterr().out
    assert out == "{'x': 1}\n{'x': 2}\n{'x': 3}\n... and 2 more rows\n"


def test_it_is_at_least_once() -> None:
    assert PrintSink().guarantee is Guarantee.AT_LEAST_ONCE


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(ConfigError, match="limit"):
        PrintSink(limit=-1)
