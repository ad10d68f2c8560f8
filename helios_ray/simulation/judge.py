"""The invariants of exactly-once, watched during a run and checked after it.

Why it exists: a run is judged by what a reader of the external system and of storage can
see, never by what the cores believe.

May import: records, identifiers, protocol (recovery), and the ledger of this room.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from helios_ray.identifiers import TransactionId
from helios_ray.protocol.recovery import valid_checkpoints
from helios_ray.records import EpochRecord, Manifest, Record

if TYPE_CHECKING:
    from helios_ray.simulation.world import World


class Judge:
    """Collects violations of one run.

    Args:
        expected: for each sink uid, every input row whose effect it must hold exactly once.
        counted: sinks whose rows carry a running count per key, which must have no gap.
    """

    def __init__(
        self, expected: dict[str, list[tuple[str, int, int, int]]], counted: frozenset[str]
    ) -> None:
        self._expected = expected
        self._counted = counted
        self.violations: list[str] = []
        self._trigger_epoch: dict[int, int] = {}
        self._newest_trigger = 0
        self._newest_epoch = 0
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

    # ------------------------------------------------------------------- while it runs

    def on_record(self, record: Record) -> None:
        """A record has become durable."""
        if isinstance(record, EpochRecord):
            self._newest_epoch = max(self._newest_epoch, record.epoch)
        if isinstance(record, Manifest):
            storage = self.world.storage
            missing = [p for p in record.paths if p not in storage.objects]
            valid = valid_checkpoints(storage.catalog())
            # A fenced coordinator's manifest may land late, after its objects were swept; it
            # does not count.
            if missing and any(c.checkpoint_id == record.checkpoint_id for c in valid):
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

    def on_commit(self, transaction: TransactionId) -> None:
        """A transaction is about to become visible: its decision must be durable (rule 1)."""
        manifests = [m for m in self.world.storage.records.values() if isinstance(m, Manifest)]
        if not any(str(transaction) == p.transaction for m in manifests for p in m.prepared):
            self.violation(f"{transaction} committed before any manifest that decides it")

    def on_drop(self, checkpoint_id: int) -> None:
        """A checkpoint is about to be dropped."""
        valid = valid_checkpoints(self.world.storage.catalog())
        if valid and valid[-1].checkpoint_id == checkpoint_id:
            self.violation(f"the newest checkpoint {checkpoint_id} is dropped")

    def on_delete(self, path: str) -> None:
        """An object is about to be deleted (rule 17)."""
        storage = self.world.storage
        for summary in valid_checkpoints(storage.catalog()):
            if path in storage.manifest(summary.checkpoint_id).paths:
                self.violation(
                    f"{path} deleted, which checkpoint {summary.checkpoint_id} refers to"
                )

    # ------------------------------------------------------------------------- afterwards

    def check_output(self) -> None:
        """Every effect exactly once, in per-key order; nothing prepared left behind."""
        by_sink: dict[str, list[tuple[object, ...]]] = defaultdict(list)
        for transaction, rows in self.world.ledger.committed.items():
            by_sink[TransactionId.parse(transaction).sink] += rows
        for sink, expected in self._expected.items():
            self._check_sink(sink, by_sink[sink], expected)
        if self.world.ledger.prepared:
            left = sorted(self.world.ledger.prepared)[:3]
            self.violation(f"left prepared at the end: {left}")

    def _check_sink(
        self,
        sink: str,
        rows: list[tuple[object, ...]],
        expected: list[tuple[str, int, int, int]],
    ) -> None:
        seen = Counter(row[:4] for row in rows)
        lost = [e for e in expected if e not in seen]
        twice = [r for r, n in seen.items() if n > 1]
        if lost:
            self.violation(f"{sink}: {len(lost)} of {len(expected)} rows lost, first {lost[0]}")
        if twice:
            self.violation(f"{sink}: {len(twice)} rows more than once, first {twice[0]}")
        last: dict[tuple[object, ...], int] = {}
        runs: dict[object, int] = {}
        for row in rows:
            source, split, n, key, _, count = row
            lane = (source, split, key)
            assert isinstance(n, int)
            if last.get(lane, -1) >= n and not twice:
                self.violation(
                    f"{sink}: order of key {key} of split {split}: {n} after {last[lane]}"
                )
                break
            last[lane] = n
            if sink in self._counted:
                runs[key] = runs.get(key, 0) + 1
                if count != runs[key] and not twice and not lost:
                    self.violation(f"{sink}: key {key} counts {count}, due is {runs[key]}")
                    break
