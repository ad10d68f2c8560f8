"""Simulated object storage: create-if-absent records, state objects, and bad days.

Why it exists: the real one answers late, not at all, or after the caller has given up
(rule 16). Each call here has two moments, when it takes effect and when its answer comes,
and either may be missing.

May import: protocol, records, errors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from helios_ray.protocol.recovery import Catalog, CheckpointSummary
from helios_ray.records import CommittedMarker, EpochRecord, Manifest, Record, RestoreRecord
from helios_ray.simulation.faults import Dice, StorageFate


def path_of(record: Record) -> str:
    """Where a record stands."""
    match record:
        case EpochRecord(epoch=epoch):
            return f"epochs/{epoch:08}"
        case RestoreRecord(epoch=epoch):
            return f"epochs/{epoch:08}.restore"
        case Manifest(checkpoint_id=checkpoint_id):
            return f"checkpoints/{checkpoint_id:010}/manifest"
        case CommittedMarker(checkpoint_id=checkpoint_id):
            return f"checkpoints/{checkpoint_id:010}/committed"
    raise AssertionError(record)


@dataclass(frozen=True, slots=True)
class StorageTrouble:
    """How a call ended instead of well.

    Args:
        unknown: it may have happened, or may yet.
        missing: what was asked for is not there.
    """

    reason: str
    unknown: bool = False
    missing: bool = False


@dataclass(slots=True)
class SimStorage:
    """What is durable, shared by every cluster of a run.

    Args:
        dice: faults.
        at: schedules a call after so many virtual seconds.
        on_record: called when a record becomes durable.
    """

    dice: Dice
    at: Callable[[float, Callable[[], None]], None]
    on_record: Callable[[Record], None] = lambda _: None
    records: dict[str, Record] = field(default_factory=dict)
    objects: dict[str, pa.Table] = field(default_factory=dict)

    def call(
        self,
        action: Callable[[], Any],
        done: Callable[[Any], None],
        failed: Callable[[StorageTrouble], None],
        fault: str = "storage",
    ) -> None:
        """Carry out a call with the latencies and the fate that the dice give it.

        Args:
            action: what takes effect; its result goes to ``done``.
            failed: takes what went wrong instead.
        """
        fate = self.dice.storage_fate(fault)
        go = self.dice.latency()
        back = self.dice.latency()
        if fate is StorageFate.DONE:
            self.at(go, lambda: self._answer(back, action, done, failed))
        elif fate is StorageFate.REFUSED:
            self.at(go + back, lambda: failed(StorageTrouble("storage refused")))
        else:
            if fate is StorageFate.LOST_REPLY:
                self.at(go, lambda: self._unheard(action))
            elif fate is StorageFate.LATE:
                late = go + self.dice.rng.uniform(1.0, 20.0)
                self.at(late, lambda: self._unheard(action))
            timeout = self.dice.rng.uniform(0.2, 2.0)
            trouble = StorageTrouble("storage did not answer", unknown=True)
            self.at(go + timeout, lambda: failed(trouble))

    def _answer(
        self,
        back: float,
        action: Callable[[], Any],
        done: Callable[[Any], None],
        failed: Callable[[StorageTrouble], None],
    ) -> None:
        try:
            result = action()
        except KeyError as error:
            trouble = StorageTrouble(f"there is no object {error}", missing=True)
            self.at(back, lambda: failed(trouble))
        else:
            self.at(back, lambda: done(result))

    def _unheard(self, action: Callable[[], Any]) -> None:
        with contextlib.suppress(KeyError):  # nobody waits for this answer
            action()

    def create(self, record: Record) -> Record | None:
        """Create a record unless one stands there; return what stood there."""
        path = path_of(record)
        existing = self.records.get(path)
        if existing is not None:
            return existing
        self.records[path] = record
        self.on_record(record)
        return None

    def catalog(self) -> Catalog:
        """What is there now."""
        every = self.records.values()
        committed = {r.checkpoint_id for r in every if isinstance(r, CommittedMarker)}
        return Catalog(
            epochs=tuple(r for r in every if isinstance(r, EpochRecord)),
            restores=tuple(r for r in every if isinstance(r, RestoreRecord)),
            checkpoints=tuple(
                CheckpointSummary(
                    checkpoint_id=m.checkpoint_id,
                    epoch=m.epoch,
                    committed=m.checkpoint_id in committed,
                    final=m.final,
                )
                for m in every
                if isinstance(m, Manifest)
            ),
        )

    def manifest(self, checkpoint_id: int) -> Manifest:
        """One manifest; KeyError if there is none."""
        record = self.records[f"checkpoints/{checkpoint_id:010}/manifest"]
        assert isinstance(record, Manifest)
        return record
