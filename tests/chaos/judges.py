"""What came out, judged by what is in PostgreSQL and on S3 and nothing else.

What it promises: every input that is missing from a sink counts as lost, every one that is
there again counts as duplicated, and whatever else is wrong (counts of a key that do not go
1, 2, 3 … in the order of commits, rows that nobody asked for, transactions, uploads or tables
left behind, checkpoints that cannot be read) is a complaint in words.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from helios_ray.checkpoint import CheckpointStorage, FileKeyProvider, list_checkpoints, read_state
from helios_ray.connectors.files import names
from helios_ray.identifiers import TransactionId
from tests.chaos.job import JOB, SOURCE, TABLE, TOTALS

SHOWN = 5


class Row(NamedTuple):
    """An output row, and the place of its commit among the commits of the sink."""

    commit: Any
    key: int
    count: int
    n: int


@dataclass(slots=True)
class Verdict:
    """What the judges say; they all write on the same one."""

    lost: int = 0
    duplicated: int = 0
    complaints: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether there is nothing to complain about."""
        return not (self.lost or self.duplicated or self.complaints)


def judge_rows(verdict: Verdict, sink: str, rows: list[Row], inputs: int) -> None:
    """Each input 0 … inputs-1 once; each key's counts 1, 2, 3 … in the order of commits.

    Args:
        rows: in the order in which the sink holds those of one commit.
    """
    seen = Counter(row.n for row in rows)
    missing = [n for n in range(inputs) if n not in seen]
    again = {n: times - 1 for n, times in seen.items() if times > 1}
    strange = [n for n in seen if not 0 <= n < inputs]
    verdict.lost += len(missing)
    verdict.duplicated += sum(again.values())
    if missing:
        verdict.complaints.append(f"{sink}: lost inputs {missing[:SHOWN]} …")
    if again:
        verdict.complaints.append(f"{sink}: duplicated inputs {sorted(again)[:SHOWN]} …")
    if strange:
        verdict.complaints.append(f"{sink}: rows of no input {sorted(strange)[:SHOWN]} …")
    counts: defaultdict[int, list[int]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.commit):  # stable: within a commit as they lie
        counts[row.key].append(row.count)
    for key, found in sorted(counts.items()):
        if found != list(range(1, len(found) + 1)):
            at = next(i for i, count in enumerate(found) if count != i + 1)
            verdict.complaints.append(
                f"{sink}: the counts of key {key} do not go 1, 2, 3 …: row {at + 1} of "
                f"{len(found)} in the order of commits says {found[at]}"
            )


def judge_postgres(verdict: Verdict, dsn: str, inputs: int) -> None:
    """The table, in the order in which PostgreSQL committed; and what must be gone."""
    import psycopg

    with psycopg.connect(dsn, autocommit=True) as connection:
        found = connection.execute(
            f"select pg_xact_commit_timestamp(xmin), xmin::text, key, count, n from {TABLE} "
            "order by count"  # SQL knows no order within a transaction
        ).fetchall()
        judge_rows(
            verdict,
            "PostgreSQL",
            [Row((at, xid), key, count, n) for at, xid, key, count, n in found],
            inputs,
        )
        for (gid,) in connection.execute("select gid from pg_prepared_xacts"):
            verdict.complaints.append(f"PostgreSQL: transaction {gid} is still prepared")
        for (table,) in connection.execute(
            "select relname from pg_class where relname like 'helios_stage%'"
        ):
            verdict.complaints.append(f"PostgreSQL: staging table {table} is still there")


def judge_files(verdict: Verdict, client: Any, bucket: str, prefix: str, inputs: int) -> None:
    """The files under a prefix, in the order of their checkpoints; and what must be gone."""
    rows: list[Row] = []
    for key in list_keys(client, bucket, prefix):
        transaction = names.parse(key.rsplit("/", 1)[1])
        if transaction is None:
            verdict.complaints.append(f"S3: a file that is nobody's output: {key}")
            continue
        body = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        rows += read_rows(key, body, transaction)
    judge_rows(verdict, "S3", rows, inputs)
    for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
        verdict.complaints.append(f"S3: an upload is still open: {upload['Key']}")


def read_rows(key: str, body: bytes, transaction: TransactionId) -> list[Row]:
    """The rows of a file, in order."""
    import pyarrow as pa
    import pyarrow.json
    import pyarrow.parquet

    source = pa.BufferReader(body)
    if key.endswith(".parquet"):
        table = pyarrow.parquet.read_table(source)
    else:
        table = pyarrow.json.read_json(source)
    columns = (table.column(name).to_pylist() for name in ("key", "count", "n"))
    commit = (transaction.checkpoint, key)
    return [Row(commit, *values) for values in zip(*columns, strict=True)]


def list_keys(client: Any, bucket: str, prefix: str) -> Iterable[str]:
    """Every object under a prefix."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", []):
            yield entry["Key"]


def judge_checkpoints(verdict: Verdict, storage: CheckpointStorage, keys: Path) -> None:
    """Every retained checkpoint opens, offline, with the key file alone."""
    checkpoints = list_checkpoints(storage, job=JOB)
    if not checkpoints:
        verdict.complaints.append("checkpoints: there are none")
    elif not (checkpoints[-1].final and checkpoints[-1].committed):
        verdict.complaints.append(f"checkpoints: the newest is not a final one: {checkpoints[-1]}")
    for summary in checkpoints:
        for operator in (SOURCE, TOTALS):
            try:
                state = read_state(
                    storage,
                    summary.checkpoint_id,
                    operator=operator,
                    keys=FileKeyProvider(keys, create=False),
                    job=JOB,
                )
            except Exception as error:
                verdict.complaints.append(
                    f"checkpoints: {summary.checkpoint_id} cannot be read: {error}"
                )
                continue
            if not any(table.num_rows for table in state.values()):
                verdict.complaints.append(
                    f"checkpoints: {summary.checkpoint_id} has no state of {operator}"
                )
