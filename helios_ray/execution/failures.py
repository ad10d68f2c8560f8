"""What becomes of an exception in user code or a connector.

Why it exists: nothing may escape a task body, and some errors would come again after every
restart: those fail the job at once (rule 14).

May import: errors, and the messages of protocol.
"""

from __future__ import annotations

from collections.abc import Callable

from helios_ray.errors import (
    ConfigError,
    DataError,
    FatalCommitError,
    PlanError,
    StateMismatchError,
)
from helios_ray.protocol.messages import FailureKind

PERMANENT_ERRORS = (DataError, ConfigError, PlanError, FatalCommitError, StateMismatchError)
"""Errors that would come again: the job fails at once instead of restarting."""


def is_permanent(error: BaseException) -> bool:
    """Whether an error would come again after a restart."""
    return isinstance(error, PERMANENT_ERRORS)


def kind_of(error: BaseException) -> FailureKind:
    """Whether trying again makes sense."""
    return FailureKind.PERMANENT if is_permanent(error) else FailureKind.RAISED


class Guard:
    """Turns an exception inside ``with`` into a call; what is no ``Exception`` passes.

    Args:
        failed: takes the exception.
    """

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        self._failed = failed

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._failed(error)
        return True
