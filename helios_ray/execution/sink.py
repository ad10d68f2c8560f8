"""The sink at the tail of a task: its transactions, their commit, their settlement.

Why it exists: rules 2, 3, 4 and 6 of the protocol meet the outside world here. A connector
knows how to prepare, commit and abort one transaction; this knows which one, when, and what
to do about those that earlier epochs left behind.

May import: plan, protocol, connectors and below.
"""

from __future__ import annotations

import pyarrow as pa

from helios_ray.connectors.base import Committable, Sink, SinkContext, TransactionalSink
from helios_ray.errors import RetryableCommitError
from helios_ray.identifiers import TransactionId
from helios_ray.plan.physical import SinkSpec
from helios_ray.protocol.commits import PendingCommits
from helios_ray.protocol.messages import ResolveTransactions
from helios_ray.records import PreparedTransaction

FIRST_RETRY = 0.05
LONGEST_RETRY = 5.0


class SinkDriver:
    """Drives one sink subtask through an epoch.

    Args:
        spec: the sink.
        context: who this subtask is.
        first_checkpoint_id: the first id of this epoch.
    """

    def __init__(self, spec: SinkSpec, context: SinkContext, first_checkpoint_id: int) -> None:
        self._context = context
        self.sink: Sink = spec.factory()
        self._pending = PendingCommits()
        self._next_checkpoint = first_checkpoint_id
        self._begun: TransactionId | None = None
        self._wanted: int | None = None
        self._resolution: ResolveTransactions | None = None
        self._retry_at: float | None = None
        self._retry_wait = FIRST_RETRY
        self.retries = 0
        self.sink.open(context)

    @property
    def is_transactional(self) -> bool:
        """Whether the sink takes part in two-phase commit."""
        return isinstance(self.sink, TransactionalSink)

    # -------------------------------------------------------------------------- writing

    def write(self, batch: pa.RecordBatch) -> None:
        """Rows for the sink."""
        if isinstance(self.sink, TransactionalSink) and self._begun is None:
            # Named after the first checkpoint that can cover it; a checkpoint that is given
            # up leaves the transaction open for the next one.
            self._begun = self._context.transaction_id(self._next_checkpoint)
            self.sink.begin(self._begun)
        self.sink.write(batch)

    def prepare(self, checkpoint_id: int) -> None:
        """The barrier has come: what was written before it must survive from here on."""
        self._next_checkpoint = checkpoint_id + 1
        if not isinstance(self.sink, TransactionalSink):
            self.sink.flush()
            return
        if self._begun is None:
            return
        payload = self.sink.prepare()
        self._pending.prepared(
            PreparedTransaction(
                transaction=str(self._begun),
                sink=self._context.sink_uid,
                checkpoint_id=checkpoint_id,
                payload=payload,
            )
        )
        self._begun = None

    @property
    def prepared(self) -> tuple[PreparedTransaction, ...]:
        """Everything prepared and not known to be committed (rule 3)."""
        return self._pending.all

    # ------------------------------------------------------------------------ committing

    def commit(self, checkpoint_id: int, now: float) -> int | None:
        """A checkpoint is complete: commit everything up to it, in order.

        Returns:
            The id up to which all is committed, or None when a retry is due later.

        Raises:
            FatalCommitError: a transaction is lost; the job must stop, loudly.
        """
        self._wanted = max(checkpoint_id, self._wanted or 0)
        return self._commit_wanted(now)

    def _commit_wanted(self, now: float) -> int | None:
        wanted = self._wanted
        if wanted is None:
            return None
        for transaction in self._pending.due(wanted):
            if not self._settle(transaction, now):
                return None
            self._pending.committed(transaction)
        self._wanted = None
        return wanted

    def _settle(self, transaction: PreparedTransaction, now: float) -> bool:
        assert isinstance(self.sink, TransactionalSink)
        try:
            self.sink.commit_transaction(
                Committable(
                    transaction=TransactionId.parse(transaction.transaction),
                    payload=transaction.payload,
                )
            )
        except RetryableCommitError:
            self._back_off(now)
            return False
        self._calm_down()
        return True

    def _back_off(self, now: float) -> None:
        self.retries += 1
        self._retry_at = now + self._retry_wait
        self._retry_wait = min(LONGEST_RETRY, self._retry_wait * 2)

    def _calm_down(self) -> None:
        self._retry_at = None
        self._retry_wait = FIRST_RETRY

    # ------------------------------------------------------------------------- settling

    def resolve(self, request: ResolveTransactions, now: float) -> ResolveTransactions | None:
        """Settle transactions of earlier epochs (rules 2 and 6).

        Returns:
            The request when it is done, or None when a retry is due later.
        """
        self._resolution = request
        return self._resolve_wanted(now)

    def _resolve_wanted(self, now: float) -> ResolveTransactions | None:
        request = self._resolution
        if request is None:
            return None
        assert isinstance(self.sink, TransactionalSink)
        for transaction in request.commit:
            if not self._settle(transaction, now):
                return None
        try:
            for leftover in self._leftovers(request):
                self.sink.abort_transaction(leftover)
        except RetryableCommitError:
            self._back_off(now)
            return None
        self._calm_down()
        self._resolution = None
        return request

    def _leftovers(self, request: ResolveTransactions) -> list[TransactionId]:
        assert isinstance(self.sink, TransactionalSink)
        context = self._context
        decided = {t.transaction for t in request.commit}
        listed = self.sink.list_prepared(TransactionId.prefix(context.job, context.sink_uid))
        if listed is not None:
            return [t for t in listed if str(t) not in decided and t.epoch < context.epoch]
        probes = (
            TransactionId(context.job, context.sink_uid, subtask, epoch, checkpoint_id)
            for epoch, first, last in request.abort_epochs
            for checkpoint_id in range(first, last + 1)
            for subtask in range(request.width)
        )
        return [t for t in probes if str(t) not in decided]

    # ------------------------------------------------------------------------------ time

    def retry(self, now: float) -> tuple[int | None, ResolveTransactions | None]:
        """Try again what had to wait; return what got done: a commit, a settlement."""
        if self._retry_at is None or now < self._retry_at:
            return None, None
        self._retry_at = None
        resolved = self._resolve_wanted(now)
        committed = self._commit_wanted(now) if self._resolution is None else None
        return committed, resolved

    def next_retry(self) -> float | None:
        """When ``retry`` has something to do, or None."""
        return self._retry_at

    def close(self) -> None:
        """Close the sink."""
        self.sink.close()
