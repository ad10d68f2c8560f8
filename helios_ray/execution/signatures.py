"""What an operator's state means, kept beside it, so that a changed program cannot misread it.

Why it exists: windows of ten seconds and windows of five keep the same columns. A job that
resumes after such a change would run on and give rows that neither program gives.

    signature   UNION   what the state means, as text

May import: errors, operators, Arrow.
"""

from __future__ import annotations

import pyarrow as pa

from helios_ray.errors import StateMismatchError
from helios_ray.operators.base import Operator, OperatorSnapshot, StateKind, StateTable

SIGNATURE = "signature"


def signed(operator: Operator) -> OperatorSnapshot:
    """What to put beside the state of ``operator``; nothing if its columns say it all."""
    text = operator.signature()
    if text is None:
        return {}
    return {SIGNATURE: StateTable(StateKind.UNION, pa.table({"signature": [text]}))}


def check_signature(operator: Operator, uid: str, stored: StateTable | None) -> None:
    """Compare what the state meant with what the operator would take it for.

    Raises:
        StateMismatchError: they differ.
    """
    text = operator.signature()
    if stored is None or text is None:
        return
    for then in set(stored.table.column(SIGNATURE).to_pylist()):
        if then != text:
            raise StateMismatchError(
                f"operator {uid!r}: the checkpoint has state of [{then}] and the job now says "
                f"[{text}]: going on would give results of neither. Change it back, give the "
                f"changed operator another uid (and pass allow_unmatched_state=True to drop the "
                f"old state), or start afresh with restore=None."
            )
