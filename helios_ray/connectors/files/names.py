"""What the files of a transaction are called.

Why it exists: after a crash all that is left of a transaction is its files, so a file's name
must say which transaction it belongs to, and a transaction must always choose the same names
(rule 6). What it promises: two transactions never share a name, and ``parse`` undoes ``file``.

    part-<sink>@<job>-<subtask>-<epoch>-<checkpoint>-<n>.parquet

``@`` cannot occur in the name of a job or a sink, so the two cannot run into each other.

May import: errors, identifiers.
"""

from __future__ import annotations

import re

from helios_ray.errors import ConfigError
from helios_ray.identifiers import TransactionId, check_name

_STEM = re.compile(r"part-([^@/]+)@([^@/]+)-(\d+)-(\d+)-(\d+)")
_FILE = re.compile(_STEM.pattern + r"-(\d+)\.[^/]+")
_PREFIX = re.compile(r"helios:([^:]+):([^:]+):.*")
_LONGEST = 180


def stem(transaction: TransactionId) -> str:
    """What the name of every file of a transaction starts with, and its staging directory's.

    Raises:
        ConfigError: job or sink uid cannot be part of a file name.

    Example:
        >>> stem(TransactionId("flights", "out", subtask=1, epoch=7, checkpoint=42))
        'part-out@flights-1-7-42'
    """
    job = check_name("job", transaction.job)
    sink = check_name("uid", transaction.sink)
    if len(job) + len(sink) > _LONGEST:
        raise ConfigError(
            f"job name and sink uid together must be at most {_LONGEST} characters to be part of "
            f"a file name, got {len(job)} + {len(sink)}. Shorten one: {job!r}, {sink!r}."
        )
    t = transaction
    return f"part-{sink}@{job}-{t.subtask}-{t.epoch}-{t.checkpoint}"


def file(transaction: TransactionId, number: int, suffix: str) -> str:
    """The name of the ``number``-th file of a transaction.

    Example:
        >>> file(TransactionId("flights", "out", 1, 7, 42), 0, ".parquet")
        'part-out@flights-1-7-42-0.parquet'
    """
    return f"{stem(transaction)}-{number}{suffix}"


def parse(name: str) -> TransactionId | None:
    """The transaction that a file or a staging directory belongs to, or None for a stranger.

    Example:
        >>> str(parse("part-out@my-job-1-7-42-0.parquet"))
        'helios:my-job:out:1:7:42'
        >>> str(parse("part-out@my-job-1-7-42"))
        'helios:my-job:out:1:7:42'
        >>> parse("README.md") is None
        True
    """
    found = _FILE.fullmatch(name) or _STEM.fullmatch(name)
    if found is None:
        return None
    sink, job, subtask, epoch, checkpoint = found.groups()[:5]
    return TransactionId(job, sink, int(subtask), int(epoch), int(checkpoint))


def common_start(prefix: str) -> str:
    """What the names of all transactions start with whose ids start with ``prefix``.

    Example:
        >>> common_start("helios:flights:out:"), common_start("helios:")
        ('part-out@flights-', 'part-')
    """
    found = _PREFIX.fullmatch(prefix)
    return f"part-{found[2]}@{found[1]}-" if found else "part-"
