"""Windows as one would write them down: row by row, in plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from helios_ray.elements import MIN_TIMESTAMP
from tests.unit.operators.windows.driving import Result, Row


def by_time(rows: list[Row]) -> tuple[int, ...]:
    return tuple(row["id"] for row in sorted(rows, key=lambda row: row["ts"]))


@dataclass
class Fixed:
    """Tumbling and sliding windows."""

    size: int
    slide: int
    offset: int
    lateness: int = 0
    accumulating: bool = True
    early: int | None = None
    watermark: int = MIN_TIMESTAMP
    late: list[int] = field(default_factory=list)
    held: dict[tuple[str, int], list[Row]] = field(default_factory=dict)
    fresh: dict[tuple[str, int], int] = field(default_factory=dict)

    def starts(self, ts: int) -> list[int]:
        latest = (ts - self.offset) // self.slide * self.slide + self.offset
        return list(range(latest, ts - self.size, -self.slide))

    def _over(self, start: int, by: int = 0) -> bool:
        return start + self.size - 1 + by <= self.watermark

    def send(self, rows: Sequence[Row]) -> list[Result]:
        again: set[tuple[str, int]] = set()
        for row in rows:
            live = [s for s in self.starts(row["ts"]) if not self._over(s, self.lateness)]
            if not live:
                self.late.append(row["id"])
            for start in live:
                window = (row["k"], start)
                self.held.setdefault(window, []).append(row)
                if self._over(start):
                    again.add(window)
                else:
                    self.fresh[window] = self.fresh.get(window, 0) + 1
        out = self._speak(again)
        if self.early is not None:
            out += self._speak({w for w, n in self.fresh.items() if n >= self.early})
        return out

    def advance(self, watermark: int) -> list[Result]:
        before, self.watermark = self.watermark, max(watermark, self.watermark)
        due = {
            (k, start)
            for k, start in self.held
            if start + self.size - 1 > before and self._over(start)
        }
        out = self._speak(due)
        for window in [w for w in self.held if self._over(w[1], self.lateness)]:
            del self.held[window]
        return out

    def tick(self) -> list[Result]:
        return self._speak(set(self.fresh))

    def _speak(self, windows: set[tuple[str, int]]) -> list[Result]:
        out = []
        for k, start in windows:
            rows = self.held[k, start]
            out.append((k, start, start + self.size, by_time(rows)))
            self.fresh.pop((k, start), None)
            if not self.accumulating:
                del self.held[k, start]
        return out


@dataclass
class Sessions:
    """Session windows. A session: its rows, those not spoken of, and whether it was kept."""

    gap: int
    lateness: int = 0
    accumulating: bool = True
    early: int | None = None
    watermark: int = MIN_TIMESTAMP
    late: list[int] = field(default_factory=list)
    held: dict[str, list[Session]] = field(default_factory=dict)

    def send(self, rows: Sequence[Row]) -> list[Result]:
        touched: set[int] = set()
        for row in rows:
            ts = row["ts"]
            near = [s for s in self.held.get(row["k"], []) if s.touches(ts, self.gap)]
            one = Session(ts, ts, [row], 1)
            for other in near:
                one = one.joined(other)
            if self._over(one, self.lateness):
                self.late.append(row["id"])
                continue
            for other in near:
                touched.discard(other.number)
                self.held[row["k"]].remove(other)
            self.held.setdefault(row["k"], []).append(one)
            touched.add(one.number)
        chosen = [
            (k, s)
            for k, sessions in self.held.items()
            for s in sessions
            if s.number in touched and self._over(s)
        ]
        if self.early is not None:
            chosen += [
                (k, s)
                for k, sessions in self.held.items()
                for s in sessions
                if s.fresh >= self.early and not self._over(s)
            ]
        return self._speak(chosen)

    def _over(self, session: Session, by: int = 0) -> bool:
        return session.last + self.gap - 1 + by <= self.watermark

    def advance(self, watermark: int) -> list[Result]:
        before, self.watermark = self.watermark, max(watermark, self.watermark)
        due = [
            (k, s)
            for k, sessions in self.held.items()
            for s in sessions
            if s.last + self.gap - 1 > before and self._over(s)
            if self.accumulating or s.fresh
        ]
        out = self._speak(due)
        for k, sessions in self.held.items():
            self.held[k] = [s for s in sessions if not self._over(s, self.lateness)]
        return out

    def tick(self) -> list[Result]:
        return self._speak([(k, s) for k, many in self.held.items() for s in many if s.fresh])

    def _speak(self, chosen: list[tuple[str, Session]]) -> list[Result]:
        out = []
        for k, session in chosen:
            out.append((k, session.start, session.last + self.gap, by_time(session.rows)))
            session.fresh = 0
            if not self.accumulating:
                session.rows = []
        return out


@dataclass(eq=False)
class Session:
    start: int
    last: int
    rows: list[Row]
    fresh: int

    @property
    def number(self) -> int:
        return id(self)

    def touches(self, ts: int, gap: int) -> bool:
        return ts - self.last < gap and self.start - ts < gap

    def joined(self, other: Session) -> Session:
        rows = sorted(self.rows + other.rows, key=lambda row: row["id"])
        return Session(
            min(self.start, other.start),
            max(self.last, other.last),
            rows,
            self.fresh + other.fresh,
        )


@dataclass
class Counted:
    """Count windows."""

    n: int
    slide: int
    seen: dict[str, list[Row]] = field(default_factory=dict)

    def send(self, rows: Sequence[Row]) -> list[Result]:
        out = []
        for row in rows:
            seen = self.seen.setdefault(row["k"], [])
            seen.append(row)
            if len(seen) % self.slide == 0:
                start = max(0, len(seen) - self.n)
                out.append((row["k"], start, len(seen), by_time(seen[start:])))
        return out
