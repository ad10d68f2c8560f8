"""Card fraud in real time: a tiny payment that tests a stolen card, then a large one.

    python examples/fraud_detection/main.py

A thief tries a card with less than a dollar; if that works, the purchase follows within the
minute. Each card remembers its last tiny payment, and an event-time timer forgets it when the
minute is over. Payments arrive out of order, so they wait until event time has reached them:
the answer depends on when they were made and not on how they travelled.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any

import pyarrow as pa

from helios_ray import (
    CheckpointConfig,
    CheckpointStorage,
    JobResult,
    StreamExecutionEnvironment,
    WatermarkStrategy,
)
from helios_ray.checkpoint import CheckpointConfigWarning, EncryptionConfig, FileKeyProvider
from helios_ray.connectors.generator import DataGenSource
from helios_ray.functions import KeyedProcessFunction, ListState, ProcessContext, ValueState

JOB = "fraud-detection"
TINY = 1.00
LARGE = 500.00
WITHIN = timedelta(minutes=1)
DISORDER = timedelta(seconds=5)
"""How much later than a younger payment one may arrive."""

TIME = pa.timestamp("us", "UTC")
PAYMENT = pa.schema(
    [("id", pa.int64()), ("card", pa.string()), ("ts", TIME), ("amount", pa.float64())]
)
ALERT = pa.schema(
    [
        ("card", pa.string()),
        ("tested_by", pa.int64()),
        ("payment", pa.int64()),
        ("ts", TIME),
        ("amount", pa.float64()),
        ("seconds_later", pa.float64()),
    ]
)
REVIEW = pa.schema([("card", pa.string()), ("payment", pa.int64()), ("ts", TIME)])


class CardGuard(KeyedProcessFunction):
    """Watches one card; runs on the rows and timers of each."""

    # One state per idea. Their Arrow types are what a checkpoint stores, and what
    # `helios_ray.checkpoint.read_state` shows of it later.
    waiting = ListState(pa.struct(list(PAYMENT)))
    suspect = ValueState(pa.struct([("id", pa.int64()), ("ts", TIME), ("alerted", pa.bool_())]))

    def process_element(self, row: dict[str, Any], ctx: ProcessContext) -> None:
        # Not judged yet: an older payment of this card may still be on its way.
        self.waiting.add(row)
        ctx.timer_service.register_event_time(row["ts"])

    def on_timer(self, timestamp: int, ctx: ProcessContext) -> Iterator[dict[str, Any]]:
        # Two kinds of timers end here: "a payment's turn has come" and "a minute is over".
        # Timers of a card fire in the order of time, so neither overtakes the other.
        now = datetime.fromtimestamp(0, timezone.utc) + timedelta(microseconds=timestamp)
        suspect = self.suspect.value()
        if suspect is not None and now >= suspect["ts"] + WITHIN:
            if not suspect["alerted"]:
                # Nothing followed. Worth a look by a person, so it leaves by a side output.
                row = {"card": ctx.current_key, "payment": suspect["id"], "ts": suspect["ts"]}
                ctx.output("reviews", row)
            self.suspect.clear()
        waiting = self.waiting.get()
        due = [row for row in waiting if row["ts"] <= now]
        if not due:
            return
        self.waiting.update(row for row in waiting if row["ts"] > now)
        for row in sorted(due, key=lambda row: (row["ts"], row["id"])):
            yield from self.judge(row, ctx)

    def judge(self, row: dict[str, Any], ctx: ProcessContext) -> Iterator[dict[str, Any]]:
        suspect = self.suspect.value()
        if row["amount"] > LARGE and suspect is not None:
            self.suspect.update({**suspect, "alerted": True})
            yield {
                "card": row["card"],
                "tested_by": suspect["id"],
                "payment": row["id"],
                "ts": row["ts"],
                "amount": row["amount"],
                "seconds_later": (row["ts"] - suspect["ts"]).total_seconds(),
            }
        elif row["amount"] < TINY:
            # A newer test takes the place of an older one, whose timer will find this one too
            # young. (Deleting that timer could take a payment's turn away: a card has one timer
            # per moment, whoever registered it.)
            self.suspect.update({"id": row["id"], "ts": row["ts"], "alerted": False})
            ctx.timer_service.register_event_time(row["ts"] + WITHIN)


def build(env: StreamExecutionEnvironment, *, rows_per_second: float | None = None) -> None:
    """Describe the job: payments in, alerts and reviews out.

    Args:
        env: where it is described.
        rows_per_second: pace of the input; None for as fast as it is taken.
    """
    payments = tables()["payments"].combine_chunks().to_batches()[0]
    # Stands for a topic or a table: FileSource, or a Source of your own, goes here.
    source = DataGenSource(
        lambda numbers: payments.take(pa.array(numbers)), rows_per_second, payments.num_rows
    )
    alerts = (
        env.from_source(
            source,
            WatermarkStrategy.bounded_out_of_orderness("ts", DISORDER),
            uid="payments",
            parallelism=1,
        )
        .key_by("card")
        .process(CardGuard, schema=ALERT, side_outputs={"reviews": REVIEW}, uid="card-guard")
    )
    alerts.collect(uid="alerts")
    # Few rows: one task is enough, whatever the parallelism of the job.
    alerts.side_output("reviews").collect(uid="reviews", parallelism=1)


# ------------------------------------------------------------- the input, and what is right


CARDS = 400
PAYMENTS = 20_000
START = datetime(2026, 3, 2, 9, tzinfo=timezone.utc)
HOURS = 6


@cache
def scenario() -> tuple[pa.Table, frozenset[tuple[int, int]]]:
    """Six hours of payments as they arrive, and the frauds among them as pairs of ids."""
    dice = random.Random(20260302)
    made: list[tuple[str, datetime, float]] = []
    frauds: list[tuple[int, int]] = []

    def pay(card: str, ts: datetime, amount: float) -> int:
        made.append((card, ts, round(amount, 2)))
        return len(made) - 1

    def moment() -> datetime:
        # Short of the end: every story below is over before the input is.
        return START + timedelta(microseconds=dice.randrange((HOURS - 1) * 3_600_000_000))

    cards = [f"card-{n:04}" for n in range(CARDS)]
    for _ in range(PAYMENTS):
        # Ordinary life lies between the two limits.
        pay(dice.choice(cards), moment(), min(2 + dice.expovariate(1 / 60), LARGE - 1))
    for n in range(24):  # the real thing; now and then the thief buys twice
        card, ts = dice.choice(cards), moment()
        test = pay(card, ts, dice.uniform(0.01, 0.99))
        for buy in range(1 + (n % 6 == 0)):
            later = timedelta(seconds=dice.uniform(2, 28) + 30 * buy)
            frauds.append((test, pay(card, ts + later, dice.uniform(501, 4_000))))
    for n in range(60):  # what looks like it and is not
        card, other, ts = dice.choice(cards), dice.choice(cards), moment()
        if n % 3 == 0:  # too late
            pay(card, ts, 0.5)
            pay(card, ts + WITHIN + timedelta(seconds=dice.uniform(0, 30)), 900)
        elif n % 3 == 1:  # not large
            pay(card, ts, 0.5)
            pay(card, ts + timedelta(seconds=20), 120)
        elif card != other:  # not the same card
            pay(card, ts, 0.5)
            pay(other, ts + timedelta(seconds=20), 900)
    # What is left of the order of arrival when networks have had their say.
    arrival = sorted(range(len(made)), key=lambda i: made[i][1] + DISORDER * dice.random() * 0.99)
    rows = [{"id": i, **dict(zip(PAYMENT.names[1:], made[i], strict=True))} for i in arrival]
    return pa.Table.from_pylist(rows, schema=PAYMENT), frozenset(frauds)


def tables() -> dict[str, pa.Table]:
    """The input by name, as the queries below see it."""
    return {"payments": scenario()[0]}


ORACLE: dict[str, str] = {
    # The same questions asked of the finished day: with everything there, they are joins.
    "alerts": f"""
        SELECT large.card, tiny.id AS tested_by, large.id AS payment, large.ts, large.amount,
               (epoch_us(large.ts) - epoch_us(tiny.ts)) / 1e6 AS seconds_later
        FROM (SELECT * FROM payments WHERE amount > {LARGE}) AS large
        ASOF JOIN (SELECT * FROM payments WHERE amount < {TINY}) AS tiny
             ON large.card = tiny.card AND large.ts >= tiny.ts
        WHERE large.ts < tiny.ts + INTERVAL 1 MINUTE
    """,
    "reviews": f"""
        SELECT tiny.card, tiny.id AS payment, tiny.ts
        FROM payments AS tiny
        WHERE tiny.amount < {TINY} AND NOT EXISTS (
            FROM payments AS next
            WHERE next.card = tiny.card AND next.id <> tiny.id
              AND (next.amount < {TINY} OR next.amount > {LARGE})
              AND next.ts >= tiny.ts AND next.ts < tiny.ts + INTERVAL 1 MINUTE
        )
    """,
}
"""By uid of a sink: the query over ``tables()`` whose rows are the sink's, in any order."""


# -------------------------------------------------------------------------------- the program


def report(result: JobResult) -> str:
    """What was found, held against what was planted."""
    payments, planted = scenario()
    alerts = result.collect("alerts").sort_by("ts").to_pylist()
    reviews = result.collect("reviews")
    found = {(alert["tested_by"], alert["payment"]) for alert in alerts}
    lines = [f"{'card':<10}{'time':<10}{'amount':>10}   seconds after the test"]
    lines += [
        f"{alert['card']:<10}{alert['ts']:%H:%M:%S}  {alert['amount']:>10,.2f}"
        f"{alert['seconds_later']:>9.1f}"
        for alert in alerts
    ]
    lines += [
        "",
        f"{payments.num_rows:,} payments of {CARDS} cards; {reviews.num_rows} tiny payments that "
        f"nothing followed are left for review",
        f"fraud_detection: alerts={len(alerts)} planted={len(planted)} "
        f"missed={len(planted - found)} false={len(found - planted)}",
    ]
    return "\n".join(lines)


def environment(state: str, key_file: str | None = None) -> StreamExecutionEnvironment:
    """Checkpoints every two seconds, sealed, in a directory."""
    with warnings.catch_warnings():
        # Short intervals cost throughput; an alert that is seen soon is the point here.
        warnings.simplefilter("ignore", CheckpointConfigWarning)
        config = CheckpointConfig(
            interval=timedelta(seconds=2),
            storage=CheckpointStorage.local(state),
            encryption=EncryptionConfig(key_provider=FileKeyProvider(key_file)),
        )
    return (
        StreamExecutionEnvironment()
        .with_checkpoint_config(config)
        .with_parallelism(2)
        # For the Ray that is started here; one that is running already is joined as it is.
        .with_ray_options(num_cpus=2, include_dashboard=False)
        .build()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--state", help="directory of checkpoints, to resume from; else temporary")
    parser.add_argument("--key-file", help="default: $HELIOS_KEY_FILE or ~/.helios/keys.json")
    parser.add_argument("--rows-per-second", type=float, help="pace of the input; default: none")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fraud-") as scratch:
        env = environment(args.state or scratch, args.key_file)
        build(env, rows_per_second=args.rows_per_second)
        print(report(env.execute(JOB)))


if __name__ == "__main__":
    main()
