"""Settings of a task body, and what it counts.

Why it exists: drivers, tests and the simulator write these down without touching the body.

May import: outputs of this room.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from helios_ray.execution.outputs import ChannelOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """Settings of a task body.

    Args:
        channels: see there.
        source_rows: rows that a source reads at a time.
        batch_bytes: rows waiting are processed together up to this size.
        heartbeat_interval: seconds.
    """

    channels: ChannelOptions = field(default_factory=ChannelOptions)
    source_rows: int = 16_384
    batch_bytes: int = 4 << 20
    heartbeat_interval: float = 1.0


@dataclass(slots=True)
class TaskCounters:
    """Running totals of one task since its process started; for metrics."""

    rows_in: int = 0
    rows_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    commits: int = 0
    commit_seconds: float = 0.0
    blocked_steps: int = 0
