"""What users test their own jobs with: the guide's pipeline, real faults, real servers.

Why it exists: a guarantee is worth what its test is worth. The names are the guide's.

    clock       a clock that a test moves
    harness     create_test_pipeline, recover_pipeline, …: exactly-once tests in ten lines
    faults      kill, hang and lose the processes of any job
    simulated   a whole job in one thread, under faults drawn from a seed
    waiting     until a job has got somewhere
    event_log   an input that outlives every crash
    servers     S3 and PostgreSQL that a test starts, kills and restarts

Names are imported when they are first used, so that the servers need no Ray.

May import: everything below.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helios_ray.testing.clock import ManualClock
    from helios_ray.testing.event_log import EventLog, EventLogSource
    from helios_ray.testing.faults import (
        find_task,
        hung_operator,
        kill_coordinator,
        kill_operator,
        lose_job,
        task_pids,
    )
    from helios_ray.testing.harness import (
        TestSink,
        TestSource,
        create_test_config,
        create_test_pipeline,
        recover_from_checkpoint,
        recover_pipeline,
    )
    from helios_ray.testing.simulated import SimulationFailed, simulate
    from helios_ray.testing.waiting import (
        await_committed,
        await_report,
        await_running,
        source_positions,
    )

__all__ = [
    "EventLog",
    "EventLogSource",
    "ManualClock",
    "SimulationFailed",
    "TestSink",
    "TestSource",
    "await_committed",
    "await_report",
    "await_running",
    "create_test_config",
    "create_test_pipeline",
    "find_task",
    "hung_operator",
    "kill_coordinator",
    "kill_operator",
    "lose_job",
    "recover_from_checkpoint",
    "recover_pipeline",
    "simulate",
    "source_positions",
    "task_pids",
]

_HOME = {
    "ManualClock": "clock",
    **dict.fromkeys(("EventLog", "EventLogSource"), "event_log"),
    **dict.fromkeys(
        (
            "find_task",
            "hung_operator",
            "kill_coordinator",
            "kill_operator",
            "lose_job",
            "task_pids",
        ),
        "faults",
    ),
    **dict.fromkeys(
        (
            "TestSink",
            "TestSource",
            "create_test_config",
            "create_test_pipeline",
            "recover_from_checkpoint",
            "recover_pipeline",
        ),
        "harness",
    ),
    **dict.fromkeys(("SimulationFailed", "simulate"), "simulated"),
    **dict.fromkeys(
        ("await_committed", "await_report", "await_running", "source_positions"), "waiting"
    ),
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'helios_ray.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"helios_ray.testing.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
