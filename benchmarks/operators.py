"""What windows, joins and process functions cost: rows/s as jobs, and per core on their own.

Why it exists: a job's rate is bound by its slowest actor and by the channel between two of
them; how much of a core an operator needs is another question, and both are asked here of the
same dataflows.

- *job*: source -> key_by -> operator -> sink at parallelism 1, two actors and whatever else
  they need, from the first sign of running to the end.
- *per core*: the job's own operator, taken out of its compiled plan, fed the same rows in
  batches of 65,536 with a watermark after each, in rows per second of CPU time.

10,000 keys; event time runs at 100,000 rows a second, so that a window of 10 s holds a
million rows, 100 of each key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from helios_ray import DataStream, StreamExecutionEnvironment, WatermarkStrategy
from helios_ray.aggregates import count, max_
from helios_ray.connectors.generator import DataGenSource
from helios_ray.elements import Batch
from helios_ray.functions import KeyedProcessFunction, ValueState
from helios_ray.operators.base import Operator, OperatorContext
from helios_ray.plan.graph import Transforms
from helios_ray.windows import SessionWindow, SlidingWindow, TumblingWindow

KEYS = 10_000
MICROSECONDS_PER_ROW = 10
BATCH = 65_536
OPERATOR = "measured"


def scattered(n: Any) -> dict[str, Any]:
    """Row n: a key far from its neighbours', a price, and its event time."""
    return {"key": (n * 7919) % KEYS, "price": (n * 31) % 997, "ts": n * MICROSECONDS_PER_ROW}


def bursts(n: Any) -> dict[str, Any]:
    """The same, but for two seconds of event time only a fifth of the keys have rows."""
    active = n // 200_000
    return {**scattered(n), "key": (active * 2_000 + (n * 7919) % 2_000) % KEYS}


class Running(KeyedProcessFunction):
    """The count and total of each key, said with every row."""

    rows = ValueState(pa.int64(), default=0)
    total = ValueState(pa.int64(), default=0)

    def process_element(self, row: dict[str, Any], ctx: Any) -> Any:
        rows, total = self.rows.value() + 1, self.total.value() + row["price"]
        self.rows.update(rows)
        self.total.update(total)
        return {"key": row["key"], "rows": rows, "total": total}


class RunningBatches(KeyedProcessFunction):
    """The same, said once per batch and key."""

    rows = ValueState(pa.int64(), default=0)
    total = ValueState(pa.int64(), default=0)

    def process_batches(self, table: pa.Table, ctx: Any) -> Any:
        rows = self.rows.get_column().to_numpy() + ctx.counts
        sums = np.add.reduceat(table["price"].to_numpy(), ctx.starts)
        total = self.total.get_column().to_numpy() + sums
        self.rows.put_column(rows)
        self.total.put_column(total)
        return {"key": ctx.keys["key"], "rows": rows, "total": total}


Describe = Callable[[StreamExecutionEnvironment, int], DataStream]


def _keyed(env: StreamExecutionEnvironment, rows: int, make: Any, uid: str = "rows") -> Any:
    source = DataGenSource(make, count=rows)
    return env.from_source(source, WatermarkStrategy.monotonic("ts"), uid=uid).key_by("key")


def tumbling(env: StreamExecutionEnvironment, rows: int) -> DataStream:
    """Count per key and 10 s."""
    windows = _keyed(env, rows, scattered).window(TumblingWindow(timedelta(seconds=10)))
    return windows.aggregate(n=count(), uid=OPERATOR)


def sliding(env: StreamExecutionEnvironment, rows: int) -> DataStream:
    """Count per key and 10 s, every 2 s."""
    window = SlidingWindow(timedelta(seconds=10), timedelta(seconds=2))
    return _keyed(env, rows, scattered).window(window).aggregate(n=count(), uid=OPERATOR)


def session(env: StreamExecutionEnvironment, rows: int) -> DataStream:
    """Count and greatest price per session of a key."""
    windows = _keyed(env, rows, bursts).window(SessionWindow(timedelta(milliseconds=500)))
    return windows.aggregate(n=count(), top=max_("price"), uid=OPERATOR)


def interval_join(env: StreamExecutionEnvironment, rows: int) -> DataStream:
    """About one match per row: both sides have a row of a key every 100 ms."""
    half = timedelta(milliseconds=50)
    right = _keyed(env, rows // 2, scattered, "right")
    return _keyed(env, rows // 2, scattered, "left").interval_join(
        right, -half, half, upper_inclusive=False, uid=OPERATOR
    )


def process_rows(env: StreamExecutionEnvironment, rows: int) -> DataStream:
    """A function with state, called for every row."""
    return _keyed(env, rows, scattered).process(Running, uid=OPERATOR)


def process_batches(env: StreamExecutionEnvironment, rows: int) -> DataStream:
    """A function with state, called for every batch."""
    return _keyed(env, rows, scattered).process(RunningBatches, uid=OPERATOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One dataflow to measure.

    Args:
        describe: makes it.
        make: the rows of each of its inputs.
        rows: of a job.
        inputs: how many streams it reads.
    """

    describe: Describe
    make: Callable[[Any], dict[str, Any]]
    rows: int
    inputs: int = 1


OPERATORS = {
    "tumbling": Measured(describe=tumbling, make=scattered, rows=10_000_000),
    "sliding": Measured(describe=sliding, make=scattered, rows=10_000_000),
    "session": Measured(describe=session, make=bursts, rows=5_000_000),
    "interval_join": Measured(describe=interval_join, make=scattered, rows=4_000_000, inputs=2),
    "process_rows": Measured(describe=process_rows, make=scattered, rows=1_000_000),
    "process_batches": Measured(describe=process_batches, make=scattered, rows=5_000_000),
}


def per_core(measured: Measured, batches: int = 40, warm: int = 8) -> float:
    """Rows per second of CPU time, of the operator alone."""
    operator = _taken_out(measured)
    operator.open(OperatorContext(uid=OPERATOR))
    prepared = list(_batches(measured, batches + warm))
    spent = 0.0
    for number, batch in enumerate(prepared):
        begun = time.process_time()
        for index in range(measured.inputs):
            operator.set_processing_time(number)
            operator.process_batch(batch, index)
        operator.on_watermark(batch.data["ts"][-1].as_py() - 1)
        if number >= warm:
            spent += time.process_time() - begun
    operator.close()
    return batches * BATCH * measured.inputs / spent


def _taken_out(measured: Measured) -> Operator:
    env = StreamExecutionEnvironment().build()
    measured.describe(env, BATCH).collect(uid="out")
    # The node's own factory does the whole work, whatever the plan does before a shuffle.
    role = env.compile("per-core").nodes[OPERATOR].role
    assert isinstance(role, Transforms), role
    return role.factory()


def _batches(measured: Measured, number: int) -> Iterator[Batch]:
    for i in range(number):
        rows = measured.make(np.arange(i * BATCH, (i + 1) * BATCH))
        yield Batch(pa.RecordBatch.from_pydict(rows))
