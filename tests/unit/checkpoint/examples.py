"""One job's records, as the tests of the checkpoint room use them."""

from __future__ import annotations

from datetime import datetime, timezone

from helios_ray.checkpoint import EncryptionConfig, InMemoryKeyProvider
from helios_ray.checkpoint.snapshots import Sealer
from helios_ray.identifiers import TaskId
from helios_ray.records import (
    CommittedMarker,
    EpochRecord,
    Manifest,
    PreparedTransaction,
    RestoreRecord,
    StateObject,
    TaskSnapshot,
)

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
KEYS = InMemoryKeyProvider({"golden": bytes(range(32))})

EPOCH = EpochRecord(epoch=7, owner="a1b2c3", headroom=1000)
RESTORE = RestoreRecord(epoch=7, owner="a1b2c3", checkpoint_id=41, first_checkpoint_id=1042)
FRESH = RestoreRecord(epoch=1, owner="ünïque", checkpoint_id=None, first_checkpoint_id=1)
COMMITTED = CommittedMarker(checkpoint_id=42, epoch=7)
MANIFEST = Manifest(
    job="hot-auctions",
    epoch=7,
    owner="a1b2c3",
    checkpoint_id=42,
    created_at=1767225600.25,
    duration=0.125,
    max_parallelism=128,
    parallelism={"bids": 1, "hot": 2, "out": 1},
    tasks=(
        TaskSnapshot(
            task=TaskId("bids", 0),
            objects=(
                StateObject(
                    operator="bids",
                    subtask=0,
                    name="positions",
                    kind="split",
                    path=None,
                    inline=b"\x00sealed bytes\xff",
                    size=14,
                    raw_size=100,
                    rows=3,
                    key_id="golden",
                    digest="d1",
                ),
                StateObject(
                    operator="hot",
                    subtask=1,
                    name="runs",
                    kind="keyed",
                    path="state/00000006/hot/1/0000000040-runs",
                    size=5000,
                    raw_size=20000,
                    rows=700,
                    key_id="golden",
                    digest="d2",
                ),
                StateObject(
                    operator="hot",
                    subtask=1,
                    name="empty",
                    kind="keyed",
                    path=None,
                    inline=b"",
                    size=0,
                    raw_size=0,
                    rows=0,
                ),
            ),
            finished=True,
        ),
        TaskSnapshot(
            task=TaskId("out", 0),
            prepared=(
                PreparedTransaction(
                    transaction="helios:hot-auctions:out:0:7:42",
                    sink="out",
                    checkpoint_id=42,
                    payload={"files": ["ä.parquet"], "rows": 12},
                ),
            ),
        ),
    ),
    final=True,
)


def sealer() -> Sealer:
    """A sealer whose keys and clock never change."""
    return Sealer(EncryptionConfig(key_provider=KEYS), clock=lambda: NOW)
