"""Calls to the outside, awaited by real event loops in real task processes."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

from helios_ray import DataStream, StreamExecutionEnvironment
from helios_ray.operators.async_map import AsyncRetry
from helios_ray.protocol.instructions import JobStatus
from helios_ray.testing import await_report, await_running, create_test_config, kill_operator
from tests.integration.runtime.support import SOON, WAIT, Flow, once


class Directory:
    """A service that answers some at once, some later, some at the second call, some never."""

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()
        self.under_way = 0
        self.most = 0

    async def __call__(self, row: dict[str, int]) -> Any:
        n = row["item"]
        self.calls[n] += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if n % 50 == 7:
                await asyncio.get_running_loop().create_future()
            await asyncio.sleep(0.001 * (n % 10))
            if n % 10 == 3 and self.calls[n] == 1:
                raise ConnectionResetError(n)
        finally:
            self.under_way -= 1
        return {"item": n, "name": f"name of {n}", "call": self.calls[n], "most": self.most}


def test_answers_come_in_order_or_as_they_come_with_retries_and_timeouts(
    name: str, tmp_path: Path
) -> None:
    env = StreamExecutionEnvironment().with_checkpoint_config(
        create_test_config(tmp_path, interval=SOON)
    )
    retry = AsyncRetry(attempts=2, initial=timedelta(milliseconds=5))
    for uid, ordered in (("in-order", True), ("as-they-come", False)):
        names = env.from_range(200, uid=f"{uid}-numbers").map_async(
            Directory,
            ordered=ordered,
            capacity=20,
            timeout=timedelta(seconds=1),
            retry=retry,
            on_error="dead_letter",
            uid=uid,
        )
        names.collect(uid=f"{uid}-names")
        names.dead_letters().collect(uid=f"{uid}-letters")

    result = env.execute_async(name).wait(WAIT)

    assert result.status is JobStatus.FINISHED
    silent = list(range(7, 200, 50))
    for uid, ordered in (("in-order", True), ("as-they-come", False)):
        rows = result.collect(f"{uid}-names").to_pylist()
        numbers = [row["item"] for row in rows]
        wanted = [n for n in range(200) if n not in silent]
        assert (numbers if ordered else sorted(numbers)) == wanted
        assert all(row["name"] == f"name of {row['item']}" for row in rows)
        assert {row["item"] for row in rows if row["call"] == 2} == set(range(3, 200, 10))
        assert 1 < max(row["most"] for row in rows) <= 20
        letters = result.collect(f"{uid}-letters").to_pylist()
        assert sorted(letter["row"] for letter in letters) == sorted(
            f'{{"item": {n}}}' for n in silent
        )
        assert all(letter["error"].startswith("TimeoutError") for letter in letters)


async def slowly(row: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(0.005 + 0.001 * (row["event_id"] % 7))
    return row


def ask_slowly(events: DataStream) -> DataStream:
    return events.map_async(slowly, capacity=8, ordered=False, uid="ask")


def test_rows_in_flight_survive_the_loss_of_the_process_that_asks(
    name: str, tmp_path: Path
) -> None:
    flow = Flow.of(
        name, tmp_path, parallelism=2, transform=ask_slowly, checkpoints={"interval": SOON}
    )
    job = flow.start()
    await_running(job)
    for turn in range(2):
        flow.emit(*range(turn * 500, turn * 500 + 500))
        # Checkpoints go on while rows wait, and what is restored holds rows in flight.
        before = job.report().committed or 0
        await_report(job, lambda report, n=before: (report.committed or 0) > n)
        kill_operator(job, "ask", turn)
    await_report(job, lambda _: len(flow.ids()) == 1_000, "a row for every event")
    assert job.report().epoch >= 3
    job.stop()
    assert flow.ids() == once(range(1_000))
