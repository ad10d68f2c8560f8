"""Two-phase commit for a sink of one's own: three methods, keyed by checkpoint.

Why it exists: :class:`~helios_ray.connectors.base.TransactionalSink` is what the runtime
drives, transaction by transaction. Most external systems can be served by less: "here are
the rows of checkpoint 42, write them so that they survive and nobody sees them", "make them
visible", "throw them away". That is :class:`TwoPhaseCommitSink`.

Promises: rows kept between two checkpoints take a bounded amount of memory; errors of the
user's code come out as errors the runtime knows what to do with.

May import: errors, identifiers, connectors.base, connectors.spilling.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar

import pyarrow as pa

from helios_ray.connectors.base import (
    CommitOutcome,
    Committable,
    Json,
    SinkContext,
    TransactionalSink,
)
from helios_ray.connectors.spilling import SpillingRows
from helios_ray.errors import (
    ConnectorError,
    FatalCommitError,
    HeliosError,
    RetryableCommitError,
    SinkUnavailableError,
)
from helios_ray.identifiers import TransactionId

_PASSING_NAMES = frozenset({"OperationalError", "InterfaceError"})
"""How every Python database driver calls a lost link or a busy server (PEP 249)."""


class TwoPhaseCommitSink(TransactionalSink):
    """Subclass this and define ``pre_commit``, ``commit`` and ``abort``.

    What the runtime promises:

    - ``pre_commit`` comes once per checkpoint and subtask, with all its rows, and not at all
      for a checkpoint without rows.
    - ``commit`` comes only after the checkpoint is complete and durable. It **may come again**
      for a transaction that is committed already (the reply was lost, the process died), and
      from **another process**, so keep nothing in ``self`` that ``commit`` needs.
    - ``abort`` **may come for a transaction that does not exist** (see ``list_prepared``);
      that is no error. It never comes for one that is to be committed.
    - Several checkpoints may be pre-committed before the first of them is committed.

    Within these three methods ``self.transaction_id(checkpoint_id)`` is the name of the
    transaction at hand: unique, and the same whoever asks, even when it was prepared by
    another subtask or before a restart. Use it as the transaction's name in the external
    system.

    What the methods may raise: from ``commit``, :class:`RetryableCommitError` and
    :class:`FatalCommitError` go through as they are; a lost link (``ConnectionError``,
    ``TimeoutError``, or an ``OperationalError`` or ``InterfaceError`` of a database driver) is
    retried, after ``disconnect`` and ``connect``; anything else is fatal, as going on would
    lose the rows.

    Class attributes to override:
        max_buffered_bytes: rows between two checkpoints that exceed this many bytes in memory
            move to a file (unlinked, readable by this process alone, not encrypted), which
            ``pre_commit`` sees as an ordinary table, mapped instead of loaded. ``None`` keeps
            all in memory. One checkpoint is always one transaction.
        spill_directory: where that file is; ``None``: the system's temporary directory.

    Example:
        >>> class Letters(TwoPhaseCommitSink):
        ...     written, visible = {}, []
        ...     def pre_commit(self, checkpoint_id, transactions):
        ...         self.written[self.transaction_id(checkpoint_id)] = transactions.to_pylist()
        ...     def commit(self, checkpoint_id):
        ...         self.visible += self.written.pop(self.transaction_id(checkpoint_id), [])
        ...     def abort(self, checkpoint_id):
        ...         self.written.pop(self.transaction_id(checkpoint_id), None)
        >>> sink = Letters()
        >>> sink.open(SinkContext(job="j", sink_uid="out", subtask=0, parallelism=1, epoch=1))
        >>> name = TransactionId("j", "out", 0, 1, 42)
        >>> sink.begin(name)
        >>> sink.write(pa.record_batch({"letter": ["a", "b"]}))
        >>> payload = sink.prepare()
        >>> Letters.visible
        []
        >>> sink.commit_transaction(Committable(transaction=name, payload=payload))
        <CommitOutcome.COMMITTED: 'committed'>
        >>> Letters.visible
        [{'letter': 'a'}, {'letter': 'b'}]

    Source: the two-phase protocol of Gray, "Notes on Data Base Operating Systems", 1978,
    driven by checkpoints as in Carbone et al., "State Management in Apache Flink", 2017.
    """

    max_buffered_bytes: ClassVar[int | None] = 64 << 20
    spill_directory: ClassVar[str | None] = None

    _context: SinkContext | None = None
    _at_hand: TransactionId | None = None
    _begun: TransactionId | None = None
    _rows: SpillingRows | None = None
    _connected: bool = False

    # ------------------------------------------------------------------ for you to define

    @abstractmethod
    def pre_commit(self, checkpoint_id: int, transactions: pa.Table) -> None:
        """Write the rows so that they survive the death of this process, unseen.

        Args:
            checkpoint_id: they belong to this checkpoint.
            transactions: the rows since the checkpoint before, in order. Copy what you keep
                beyond this call.
        """

    @abstractmethod
    def commit(self, checkpoint_id: int) -> None:
        """Make what ``pre_commit`` wrote visible; do nothing if it is already."""

    @abstractmethod
    def abort(self, checkpoint_id: int) -> None:
        """Throw away what ``pre_commit`` wrote; do nothing if there is none."""

    def connect(self) -> None:
        """Connect to the external system. Called when the sink opens, and again before the
        next call after a link was lost.
        """

    def disconnect(self) -> None:
        """Let go of what ``connect`` made; it may be broken already."""

    def list_prepared(self, prefix: str) -> Iterable[TransactionId] | None:
        """The transactions that are pre-committed and neither committed nor aborted.

        Define it where the external system can list them: names that ``transaction_id``
        returned, of whatever subtask and epoch, read back by ``TransactionId.parse``.

        The default, ``None``, says that it cannot. After a restart the runtime then calls
        ``abort`` for every checkpoint that a former attempt may have pre-committed after the
        one restored. That is a finite set, most of which never existed.

        Args:
            prefix: what the names of this sink's transactions start with.
        """
        return None

    # --------------------------------------------------------------------- for you to use

    def transaction_id(self, checkpoint_id: int) -> str:
        """The durable, unique name of the transaction at hand: at most some 320 characters
        of letters, digits, ``_ . - :``.

        Raises:
            ConnectorError: the sink is not open.
        """
        if self._at_hand is not None:
            return str(replace(self._at_hand, checkpoint=checkpoint_id))
        return str(self.context.transaction_id(checkpoint_id))

    @property
    def context(self) -> SinkContext:
        """Job, sink uid, subtask, parallelism and epoch of this instance.

        Raises:
            ConnectorError: the sink is not open.
        """
        if self._context is None:
            raise ConnectorError(
                f"{type(self).__name__} is not open: expected open(context) before this. If "
                "you override open, call super().open(context)."
            )
        return self._context

    # ------------------------------------------------------------- what the runtime drives

    def open(self, context: SinkContext) -> None:
        self._context = context
        try:
            self._connect()
        except HeliosError:
            raise
        except Exception as error:
            raise SinkUnavailableError(
                f"{self._name()}: connect() raised {type(error).__name__}: {error}"
            ) from error

    def begin(self, transaction: TransactionId) -> None:
        self._discard()
        self._begun = transaction
        self._rows = SpillingRows(self.max_buffered_bytes, self.spill_directory)

    def write(self, batch: pa.RecordBatch) -> None:
        if self._rows is None:
            raise ConnectorError(f"{self._name()}: expected begin(transaction) before write")
        self._rows.add(batch)

    def prepare(self) -> Json:
        transaction, rows = self._begun, self._rows
        if transaction is None or rows is None:
            raise ConnectorError(f"{self._name()}: expected begin(transaction) before prepare")
        try:
            self._call(transaction, lambda: self._pre_commit(transaction, rows), _prepare_failed)
        finally:
            self._discard()
        return None

    def _pre_commit(self, transaction: TransactionId, rows: SpillingRows) -> None:
        with rows.table() as table:
            if table is not None:
                self.pre_commit(transaction.checkpoint, table)

    def commit_transaction(self, committable: Committable) -> CommitOutcome:
        transaction = committable.transaction
        self._call(transaction, lambda: self.commit(transaction.checkpoint), _commit_failed)
        # The user's method does not say which of the two; both are good.
        return CommitOutcome.COMMITTED

    def abort_transaction(self, transaction: TransactionId, payload: Json = None) -> None:
        if transaction == self._begun:
            self._discard()
        self._call(transaction, lambda: self.abort(transaction.checkpoint), _abort_failed)

    def close(self) -> None:
        """Called when the sink's task ends or is reset."""
        self._discard()
        self._disconnect()

    # ------------------------------------------------------------------------------ inside

    def _call(
        self,
        transaction: TransactionId,
        method: Callable[[], None],
        failed: Callable[[str, Exception], HeliosError],
    ) -> None:
        """Run a method of the user's on ``transaction`` and translate what it raises."""
        self._at_hand = transaction
        try:
            if not self._connected:
                self._connect()
            method()
        except Exception as error:
            if is_link_error(error) or isinstance(error, RetryableCommitError):
                self._disconnect()
            if isinstance(error, HeliosError):
                raise
            raise failed(f"{self._name()}, transaction {transaction}", error) from error
        finally:
            self._at_hand = None

    def _connect(self) -> None:
        self.connect()
        self._connected = True

    def _disconnect(self) -> None:
        if self._connected:
            self._connected = False
            with suppress(Exception):  # broken links raise when they are closed
                self.disconnect()

    def _discard(self) -> None:
        if self._rows is not None:
            self._rows.close()
        self._begun, self._rows = None, None

    def _name(self) -> str:
        where = f" {self._context.sink_uid!r}" if self._context is not None else ""
        return f"{type(self).__name__}{where}"


def is_link_error(error: BaseException) -> bool:
    """Whether an error says that the link or the server failed, not the request.

    Example:
        >>> is_link_error(BrokenPipeError()), is_link_error(ValueError())
        (True, False)
    """
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    return any(kind.__name__ in _PASSING_NAMES for kind in type(error).__mro__)


def _prepare_failed(where: str, error: Exception) -> HeliosError:
    text = f"{where}: pre_commit() raised {type(error).__name__}: {error}"
    return SinkUnavailableError(text) if is_link_error(error) else ConnectorError(text)


def _commit_failed(where: str, error: Exception) -> HeliosError:
    text = f"{where}: commit() raised {type(error).__name__}: {error}"
    if is_link_error(error):
        return RetryableCommitError(text)
    return FatalCommitError(
        f"{text}. The rows of a complete checkpoint would be lost, so the job ends. If commit() "
        "may succeed later, let it raise RetryableCommitError; if the transaction was committed "
        "before, it must return."
    )


def _abort_failed(where: str, error: Exception) -> HeliosError:
    text = f"{where}: abort() raised {type(error).__name__}: {error}"
    if is_link_error(error):
        return RetryableCommitError(text)
    return ConnectorError(f"{text}. If there is no such transaction, abort() must return.")
