"""What a simulated job must have put into the external system in the end.

Why it exists: jobs that only move and count rows are judged row by row, with their order and
their counts; jobs that compute something are judged as a multiset, against what plain Python
makes of the same input. Where results hang on the clock, what must hold of them is checked.

May import: nothing of the package.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Identity = tuple[str, int, int, int]
"""Source, split, number and key of an input row."""

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a sink must hold in the end: input rows, or what can be told apart like them.

    Args:
        rows: every input row whose effect it must hold.
        copies: how many times.
        at_least_once: more often is all right.
        counted: rows carry a running count per key, which must have no gap.
        keyed: order holds per key and split; else per subtask and split.
    """

    rows: tuple[Identity, ...]
    copies: int = 1
    at_least_once: bool = False
    counted: bool = False
    keyed: bool = True


def as_it_is(row: Row) -> Iterable[Row]:
    """The row itself."""
    return (row,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiset:
    """What one or several sinks must hold together in the end, in whatever order.

    Args:
        rows: how often each must be there; nothing else may be.
        read: by sink uid, what a row of that sink stands for: usually itself.
        once: by sink uid, what of a row no other row of that sink may have too.
    """

    rows: Counter[Row]
    read: Mapping[str, Callable[[Row], Iterable[Row]]]
    once: Mapping[str, Callable[[Row], Row]] = field(default_factory=dict)

    @property
    def sinks(self) -> tuple[str, ...]:
        """Whose rows are looked at."""
        return tuple(self.read)

    def difference(self, seen: Mapping[str, Iterable[Row]]) -> str:
        """What is wrong with the rows of each sink; empty if nothing is."""
        have = Counter(
            part for uid, read in self.read.items() for r in seen[uid] for part in read(r)
        )
        lost, extra = self.rows - have, have - self.rows
        told = []
        if lost:
            total = self.rows.total()
            told.append(f"{lost.total()} of {total} rows lost, first {min(lost, key=repr)}")
        if extra:
            told.append(f"{extra.total()} rows too many, first {min(extra, key=repr)}")
        for uid, part in self.once.items():
            repeated = [p for p, times in Counter(map(part, seen[uid])).items() if times > 1]
            if repeated:
                told.append(f"{len(repeated)} results more than once, first {repeated[0]}")
        return "; ".join(told)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What can be said of a sink where not every row of it is known beforehand.

    Args:
        sinks: uid of the sink whose rows are looked at.
        check: from its rows to what is wrong with them; empty if nothing is.
    """

    sinks: tuple[str]
    check: Callable[[list[Row]], str]

    def difference(self, seen: Mapping[str, Iterable[Row]]) -> str:
        """What is wrong with the rows of the sink; empty if nothing is."""
        (uid,) = self.sinks
        return self.check(list(seen[uid]))


Expected: TypeAlias = Expectation | Multiset | Checked
