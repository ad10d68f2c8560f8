"""The external system of a simulated job: it knows prepare, commit and abort by id, no more.

Why it exists: exactly-once is judged outside the runtime, by what a reader of the external
system sees. The ledger does not help: no fencing, no knowledge of epochs or checkpoints.

May import: connectors, identifiers, errors, and faults of this room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pyarrow as pa

from helios_ray.connectors.base import CommitOutcome, Committable, Json, TransactionalSink
from helios_ray.errors import FatalCommitError, RetryableCommitError, SinkUnavailableError
from helios_ray.identifiers import TransactionId
from helios_ray.simulation.faults import Dice

Row = tuple[object, ...]


@dataclass(slots=True)
class Ledger:
    """Rows by transaction, and what became of each.

    Args:
        dice: faults of commits and prepares.
        on_commit: called before a transaction becomes visible for the first time.
    """

    dice: Dice
    on_commit: Callable[[TransactionId], None] = lambda _: None
    prepared: dict[str, list[Row]] = field(default_factory=dict)
    committed: dict[str, list[Row]] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)

    def prepare(self, transaction: TransactionId, rows: list[Row]) -> None:
        """Keep rows, unseen."""
        if self.dice.happens("prepare"):
            raise SinkUnavailableError(f"ledger refused to prepare {transaction}")
        self.prepared[str(transaction)] = rows

    def commit(self, transaction: TransactionId) -> CommitOutcome:
        """Make rows visible."""
        key = str(transaction)
        if self.dice.happens("commit_fatal"):
            raise FatalCommitError(f"ledger refuses {key} for good (until somebody mends it)")
        if self.dice.happens("commit_retry"):
            raise RetryableCommitError(f"ledger is busy: {key}")
        if key in self.committed:
            return CommitOutcome.ALREADY_COMMITTED
        if key not in self.prepared:
            raise FatalCommitError(f"ledger does not know {key}: its rows are lost")
        self.on_commit(transaction)
        self.committed[key] = self.prepared.pop(key)
        if self.dice.happens("commit_lost_reply"):
            raise RetryableCommitError(f"ledger's answer for {key} was lost")
        return CommitOutcome.COMMITTED

    def abort(self, transaction: TransactionId) -> None:
        """Throw rows away; a committed transaction stays."""
        if self.dice.happens("commit_retry"):
            raise RetryableCommitError(f"ledger is busy: {transaction}")
        self.prepared.pop(str(transaction), None)
        self.aborted.add(str(transaction))

    def rows(self) -> Iterable[Row]:
        """What a reader sees, in the order in which it became visible."""
        for rows in self.committed.values():
            yield from rows


class LedgerSink(TransactionalSink):
    """A sink into the ledger.

    Args:
        ledger: shared by all subtasks of all attempts, as an external system is.
        can_list: whether the external system can list what is prepared.
    """

    def __init__(self, ledger: Ledger, *, can_list: bool = True) -> None:
        self._ledger = ledger
        self._can_list = can_list
        self._transaction: TransactionId | None = None
        self._rows: list[Row] = []

    def begin(self, transaction: TransactionId) -> None:
        self._transaction = transaction
        self._rows = []

    def write(self, batch: pa.RecordBatch) -> None:
        self._rows += zip(*(c.to_pylist() for c in batch.columns), strict=True)

    def prepare(self) -> Json:
        assert self._transaction is not None
        self._ledger.prepare(self._transaction, self._rows)
        self._transaction, rows = None, self._rows
        self._rows = []
        return {"rows": len(rows)}

    def commit_transaction(self, committable: Committable) -> CommitOutcome:
        return self._ledger.commit(committable.transaction)

    def abort_transaction(self, transaction: TransactionId, payload: Json = None) -> None:
        self._ledger.abort(transaction)

    def list_prepared(self, prefix: str) -> Iterable[TransactionId] | None:
        if not self._can_list:
            return None
        return [TransactionId.parse(t) for t in self._ledger.prepared if t.startswith(prefix)]
