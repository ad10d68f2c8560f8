"""The invariants of exactly-once, watched during a run and checked after it.

Why it exists: a run is judged by what a reader of the external system and of storage can
see, never by what the cores believe.

May import: records, identifiers, protocol (recovery), and the expectations of this room.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from helios_ray.connectors.base import SinkContext
from helios_ray.identifiers import TransactionId
from helios_ray.protocol.recovery import valid_checkpoints
from helios_ray.records import EpochRecord, Manifest, Record, RestoreRecord
from helios_ray.simulation.expectations import Expectation, Expected

if TYPE_CHECKING:
    from helios_ray.simulation.world import World


def _short(record: Record) -> str:
    if isinstance(record, Manifest):
        return f"manifest {record.checkpoint_id} of epoch {record.epoch}, {record.owner}"
    return str(record)


class Judge:
    """Collects violations of one run.

    Args:
        expected: by sink uid, or by the name of a group of sinks.
    """

    def __init__(self, expected: Mapping[str, Expected]) -> None:
        self._expected = expected
        self.violations: list[str] = []
        self.durable: Counter[str] = Counter()
        self._trigger_epoch: dict[int, int] = {}
        self._newest_epoch = 0
        self._owners: dict[int, str] = {}
        self._dropped: set[int] = set()
        self._writing: set[tuple[str, int]] = set()
        self._last_commit: dict[tuple[str, int], int] = {}
        self._world: World | None = None

    def watch(self, world: World) -> None:
        """The world this judge looks at."""
        self._world = world

    @property
    def world(self) -> World:
        """Set by ``watch``."""
        assert self._world is not None
        return self._world

    def violation(self, what: str) -> None:
        """Note a broken promise."""
        self.violations.append(f"t={self.world.now:.3f}: {what}")

    # -------------------------------------------------------------------------- storage

    def on_record(self, record: Record) -> None:
        """A record has become durable."""
        self.world.note(f"durable: {_short(record)}")
        self.durable[type(record).__name__] += 1
        if isinstance(record, RestoreRecord) and record.checkpoint_id is not None:
            self.durable["restores"] += 1
        if isinstance(record, EpochRecord):
            self._newest_epoch = max(self._newest_epoch, record.epoch)
            owner = self._owners.setdefault(record.epoch, record.owner)
            if owner != record.owner:
                self.violation(f"epoch {record.epoch} of {owner} is taken by {record.owner}")
        if isinstance(record, Manifest):
            storage = self.world.storage
            missing = sorted(p for p in record.paths if p not in storage.objects)
            valid = valid_checkpoints(storage.catalog())
            # One that lands late, after its objects were swept, is never resumed from: it
            # is of a fenced epoch, or a newer one of the same line is there.
            if missing and valid and valid[-1].checkpoint_id == record.checkpoint_id:
                self.violation(f"manifest {record.checkpoint_id} names missing {missing[:3]}")

    def on_trigger(self, epoch: int, checkpoint_id: int) -> None:
        """A coordinator has triggered a checkpoint."""
        used_by = self._trigger_epoch.setdefault(checkpoint_id, epoch)
        if used_by != epoch:
            self.violation(f"checkpoint id {checkpoint_id} of epoch {used_by} reused by {epoch}")
        for other, other_epoch in self._trigger_epoch.items():
            if other_epoch < epoch and other > checkpoint_id:
                self.violation(
                    f"checkpoint ids go back: {other} in epoch {other_epoch}, then "
                    f"{checkpoint_id} in epoch {epoch}"
                )
                break

    def on_missing(self, epoch: int, what: str) -> None:
        """Something that a restore needs is not there."""
        # A fenced epoch may find that its successor has dropped what it was about to read.
        if epoch >= self._newest_epoch:
            self.violation(f"epoch {epoch} cannot restore: {what}")

    def on_drop(self, checkpoint_id: int) -> None:
        """A checkpoint is about to be dropped."""
        valid = valid_checkpoints(self.world.storage.catalog())
        self._dropped.add(checkpoint_id)
        if valid and valid[-1].checkpoint_id == checkpoint_id:
            self.violation(f"the newest checkpoint {checkpoint_id} is dropped")

    def on_delete(self, path: str) -> None:
        """An object is about to be deleted (rule 17)."""
        storage = self.world.storage
        for summary in valid_checkpoints(storage.catalog()):
            # A write that nobody waits for may bring a dropped manifest back, late.
            if summary.checkpoint_id in self._dropped:
                continue
            if path in storage.manifest(summary.checkpoint_id).paths:
                self.violation(
                    f"{path} deleted, which checkpoint {summary.checkpoint_id} refers to"
                )

    # -------------------------------------------------------------- the external system

    def _decided(self) -> set[str]:
        """Transactions that a checkpoint which counts decides to commit."""
        storage = self.world.storage
        return {
            p.transaction
            for summary in valid_checkpoints(storage.catalog())
            for p in storage.manifest(summary.checkpoint_id).prepared
        }

    def on_commit(self, transaction: TransactionId) -> None:
        """Its decision must be durable, and count (rule 1); and in order (rule 3)."""
        self.world.note(f"commit {transaction}")
        if str(transaction) not in self._decided():
            self.violation(f"{transaction} committed before a manifest that decides it")
        lane = (transaction.sink, transaction.subtask)
        if self._last_commit.get(lane, 0) >= transaction.checkpoint:
            self.violation(f"{transaction} committed after a later one of its subtask")
        self._last_commit[lane] = transaction.checkpoint

    def on_abort(self, transaction: TransactionId) -> None:
        """What a checkpoint that counts has decided must not be thrown away (rule 2)."""
        self.world.note(f"abort {transaction}")
        if str(transaction) in self._decided():
            self.violation(f"{transaction} aborted, though a checkpoint decides to commit it")

    def on_write(self, context: SinkContext) -> None:
        """Before an epoch's first row, what it found must be committed (rule 2)."""
        if (context.sink_uid, context.epoch) in self._writing:
            return
        self._writing.add((context.sink_uid, context.epoch))
        storage = self.world.storage
        record = storage.records.get(f"epochs/{context.epoch:08}.restore")
        if not isinstance(record, RestoreRecord):
            self.violation(f"epoch {context.epoch} writes before it recorded where it resumed")
            return
        manifest = storage.records.get(f"checkpoints/{record.checkpoint_id or 0:010}/manifest")
        if isinstance(manifest, Manifest):
            open_ = [p for p in manifest.prepared if p.transaction in self.world.ledger.prepared]
            if any(p.sink == context.sink_uid for p in open_):
                self.violation(f"epoch {context.epoch} writes before {open_[0].transaction}")

    def on_watermark(self, before: int, after: int) -> None:
        """Event time never goes back (rule 12)."""
        if after < before:
            self.violation(f"an operator is told watermark {after} after {before}")

    # ------------------------------------------------------------------------- afterwards

    def check_output(self) -> None:
        """Every effect exactly once, in order; nothing prepared left behind."""
        ledger = self.world.ledger
        by_sink: dict[str, list[tuple[int, tuple[object, ...]]]] = defaultdict(list)
        for text, rows in ledger.committed.items():
            transaction = TransactionId.parse(text)
            by_sink[transaction.sink] += [(transaction.subtask, row) for row in rows]
        for sink, expected in self._expected.items():
            if not isinstance(expected, Expectation):
                seen = {uid: [row for _, row in by_sink[uid]] for uid in expected.sinks}
                if wrong := expected.difference(seen):
                    self.violation(f"{sink}: {wrong}")
                continue
            rows_in_log = [(0, row) for row in ledger.log.get(sink, ())]
            self._check_sink(sink, by_sink[sink] + rows_in_log, expected)
        if ledger.prepared:
            self.violation(f"left prepared at the end: {sorted(ledger.prepared)[:3]}")

    def _check_sink(
        self, sink: str, rows: list[tuple[int, tuple[object, ...]]], expected: Expectation
    ) -> None:
        seen = Counter(row[:4] for _, row in rows)
        lost = [e for e in expected.rows if seen[e] < expected.copies]
        twice = [r for r, n in seen.items() if n > expected.copies]
        if lost:
            n = len(expected.rows)
            self.violation(f"{sink}: {len(lost)} of {n} rows lost, first {lost[0]}")
        if expected.at_least_once:
            return
        if twice:
            self.violation(f"{sink}: {len(twice)} rows too often, first {twice[0]}")
        if lost or twice:
            return
        self._check_order(sink, rows, expected)

    def _check_order(
        self, sink: str, rows: list[tuple[int, tuple[object, ...]]], expected: Expectation
    ) -> None:
        last: dict[tuple[object, ...], int] = {}
        runs: Counter[object] = Counter()
        for subtask, (source, split, n, key, _, count) in rows:
            lane = (source, split, key if expected.keyed else -1, subtask * (not expected.keyed))
            assert isinstance(n, int)
            if last.get(lane, -1) >= n:
                self.violation(
                    f"{sink}: order of key {key} of split {split}: {n} after {last[lane]}"
                )
                return
            last[lane] = n
            runs[key] += 1
            if expected.counted and count != runs[key]:
                self.violation(f"{sink}: key {key} counts {count}, due is {runs[key]}")
                return
