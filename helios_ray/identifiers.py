"""Names of the things that talk to each other: tasks, channels, transactions.

Why it exists: an identifier is compared, stored in checkpoints and shown in Ray's
actor list, so each has one type and one spelling. All are deterministic: two runs
of one program name the same things the same way (rule 6 of the protocol).

May import: errors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from helios_ray.errors import ConfigError

_SAFE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}$")


def check_name(kind: str, value: str) -> str:
    """Return ``value`` if it can be part of a path, an actor name and a transaction id.

    Raises:
        ConfigError: the name is empty, too long, or holds a character other than
            letters, digits, ``_``, ``.`` and ``-``.

    Example:
        >>> check_name("uid", "per-carrier")
        'per-carrier'
    """
    if not _SAFE.match(value):
        raise ConfigError(
            f"{kind} must be 1-128 letters, digits, '_', '.' or '-', starting with a letter or "
            f"digit, got {value!r}. It becomes part of paths and transaction ids; rename it."
        )
    return value


@dataclass(frozen=True, slots=True, order=True)
class TaskId:
    """One subtask of one chain of operators: the unit that one actor runs.

    Args:
        operator: uid of the first operator of the chain.
        subtask: index in ``range(parallelism)``.
    """

    operator: str
    subtask: int

    def __str__(self) -> str:
        return f"{self.operator}[{self.subtask}]"


@dataclass(frozen=True, slots=True, order=True)
class ChannelId:
    """One FIFO lane from one upstream subtask to one downstream subtask, along one edge.

    Args:
        edge: index of the edge in the physical plan; tells apart two edges between the
            same pair of operators.
    """

    edge: int
    upstream: TaskId
    downstream: TaskId

    def __str__(self) -> str:
        return f"{self.upstream}->{self.downstream}#{self.edge}"


@dataclass(frozen=True, slots=True, order=True)
class TransactionId:
    """A sink transaction, named so that any later attempt can find it (rule 6).

    Two transactions never share a name: the epoch tells attempts apart and the checkpoint
    tells the transactions of one attempt apart.

    Example:
        >>> t = TransactionId(job="j", sink="out", subtask=1, epoch=7, checkpoint=42)
        >>> str(t)
        'helios:j:out:1:7:42'
        >>> TransactionId.parse(str(t)) == t
        True
    """

    job: str
    sink: str
    subtask: int
    epoch: int
    checkpoint: int

    def __str__(self) -> str:
        return f"helios:{self.job}:{self.sink}:{self.subtask}:{self.epoch}:{self.checkpoint}"

    @staticmethod
    def prefix(job: str, sink: str) -> str:
        """What the id of every transaction of this sink of this job starts with."""
        return f"helios:{job}:{sink}:"

    @classmethod
    def parse(cls, text: str) -> TransactionId:
        """Read back what ``str`` wrote.

        Raises:
            ValueError: ``text`` is not the name of a helios_ray transaction.
        """
        parts = text.split(":")
        if len(parts) != 6 or parts[0] != "helios":
            msg = f"expected 'helios:<job>:<sink>:<subtask>:<epoch>:<checkpoint>', got {text!r}"
            raise ValueError(msg)
        return cls(parts[1], parts[2], int(parts[3]), int(parts[4]), int(parts[5]))
