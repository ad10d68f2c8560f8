"""Promises of the failpoints: without the variable nothing; with it, one death, at the right
step, of the right process, with a note of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helios_ray.elements import CheckpointBarrier
from helios_ray.identifiers import TaskId
from helios_ray.protocol import instructions as i
from helios_ray.protocol.coordinator import CoordinatorCore, CoordinatorRules, JobShape
from helios_ray.protocol.messages import (
    CommitAcknowledged,
    CommitCheckpoint,
    ResolveTransactions,
    SnapshotAcknowledged,
    ToCoordinator,
    TransactionsResolved,
    TriggerCheckpoint,
)
from helios_ray.records import CommittedMarker, Manifest, TaskSnapshot
from helios_ray.runtime import failpoints
from helios_ray.runtime.failpoints import (
    COORDINATOR,
    STEPS,
    CoordinatorFailpoints,
    Failpoints,
    TaskFailpoints,
)

TASK = TaskId("totals", 1)
OTHER = TaskId("totals", 0)


class Died(BaseException):
    """Stands for the death of this process."""


@pytest.fixture(autouse=True)
def deaths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Instead of killing this process, raise; collects whom it would have hit, and how."""
    seen: list[tuple[int, int]] = []

    def kill(pid: int, how: int) -> None:
        seen.append((pid, how))
        raise Died

    monkeypatch.setattr(os, "kill", kill)
    return seen


class Reply:
    """A call to an actor that has been carried out, or whose actor is gone."""

    def __init__(self, error: Exception | None = None) -> None:
        self.waited_for = False
        self._error = error

    def future(self) -> Reply:
        return self

    def result(self, timeout: float) -> None:
        self.waited_for = True
        if self._error is not None:
            raise self._error


def acknowledgement(task: TaskId = TASK) -> SnapshotAcknowledged:
    return SnapshotAcknowledged(
        task=task, epoch=3, checkpoint_id=7, snapshot=TaskSnapshot(task=task)
    )


COMMITTED = CommitAcknowledged(task=TASK, epoch=3, checkpoint_id=7)
RESOLVED = TransactionsResolved(task=TASK, epoch=3, sink="out")


def manifest() -> Manifest:
    return Manifest(
        job="j",
        epoch=3,
        owner="o",
        checkpoint_id=7,
        created_at=0.0,
        duration=0.0,
        max_parallelism=1,
        parallelism={},
        tasks=(),
    )


# ---------------------------------------------------------------------------- in real life


def test_without_the_variable_no_process_has_failpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(failpoints.VARIABLE, raising=False)
    assert failpoints.of_task(TASK) is None
    assert failpoints.of_coordinator(a_core()) is None


def test_with_the_variable_every_process_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, str(tmp_path))
    assert isinstance(failpoints.of_task(TASK), TaskFailpoints)
    assert isinstance(failpoints.of_coordinator(a_core()), CoordinatorFailpoints)


def test_a_process_that_comes_to_an_armed_step_is_killed_by_the_operating_system(
    tmp_path: Path,
) -> None:
    failpoints.arm(tmp_path, "after-ack")
    program = (
        "import sys; from helios_ray.runtime.failpoints import Failpoints\n"
        "Failpoints('totals[1]', sys.argv[1]).reach('after-ack', 3)\n"
        "print('survived')"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, check=False
    )
    assert (process.returncode, process.stdout) == (-signal.SIGKILL, b"")
    note = failpoints.fired(tmp_path, "after-ack")
    assert note is not None
    assert (note.step, note.who, note.epoch) == ("after-ack", "totals[1]", 3)
    assert note.pid != os.getpid()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after-ack.fired"]


# ---------------------------------------------------------------------------------- arming


def test_nothing_happens_at_a_step_that_is_not_armed(
    tmp_path: Path, deaths: list[tuple[int, int]]
) -> None:
    failpoints.arm(tmp_path, "after-ack")
    for step in STEPS:
        if step != "after-ack":
            Failpoints("totals[1]", tmp_path).reach(step, 3)
    assert deaths == []
    assert failpoints.fired(tmp_path, "after-ack") is None


def test_one_armed_failpoint_is_one_death(tmp_path: Path, deaths: list[tuple[int, int]]) -> None:
    failpoints.arm(tmp_path, "after-ack")
    with pytest.raises(Died):
        Failpoints("totals[1]", tmp_path).reach("after-ack", 3)
    Failpoints("totals[0]", tmp_path).reach("after-ack", 3)
    assert deaths == [(os.getpid(), signal.SIGKILL)]


@pytest.mark.parametrize(
    ("filter_", "who", "dies"),
    [
        ("", "totals[1]", True),
        ("", COORDINATOR, True),
        ("totals", "totals[1]", True),
        ("totals[1]", "totals[1]", True),
        ("totals[0]", "totals[1]", False),
        ("totals", COORDINATOR, False),
        (COORDINATOR, COORDINATOR, True),
        (COORDINATOR, "totals[1]", False),
        # A task may be called what it likes.
        (COORDINATOR, "the-coordinator[0]", False),
        ("coord", COORDINATOR, False),
    ],
)
def test_only_whom_the_filter_names_dies(
    tmp_path: Path, deaths: list[tuple[int, int]], filter_: str, who: str, dies: bool
) -> None:
    failpoints.arm(tmp_path, "after-ack", who=filter_)
    try:
        Failpoints(who, tmp_path).reach("after-ack", 3)
    except Died:
        assert dies
    assert bool(deaths) == dies
    assert failpoints.disarm(tmp_path, "after-ack") != dies


def test_as_many_pass_as_are_to_be_skipped(tmp_path: Path, deaths: list[tuple[int, int]]) -> None:
    failpoints.arm(tmp_path, "after-ack", who="totals", skip=2)
    process = Failpoints("totals[1]", tmp_path)
    process.reach("after-ack", 3)
    process.reach("after-ack", 3)
    assert deaths == []
    with pytest.raises(Died):
        process.reach("after-ack", 3)


def test_what_is_disarmed_kills_nobody(tmp_path: Path, deaths: list[tuple[int, int]]) -> None:
    failpoints.arm(tmp_path, "after-ack")
    assert failpoints.disarm(tmp_path, "after-ack")
    Failpoints("totals[1]", tmp_path).reach("after-ack", 3)
    assert deaths == []
    assert not failpoints.disarm(tmp_path, "after-ack")


def test_arming_again_forgets_the_last_death(tmp_path: Path) -> None:
    failpoints.arm(tmp_path, "after-ack")
    with pytest.raises(Died):
        Failpoints("totals[1]", tmp_path).reach("after-ack", 3)
    failpoints.arm(tmp_path, "after-ack")
    assert failpoints.fired(tmp_path, "after-ack") is None


@pytest.mark.parametrize(("step", "who"), [("after-lunch", ""), ("after-snapshot", COORDINATOR)])
def test_a_step_that_nobody_comes_to_cannot_be_armed(tmp_path: Path, step: str, who: str) -> None:
    with pytest.raises(ValueError, match=step):
        failpoints.arm(tmp_path, step, who=who)
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------- a task's steps


def trigger() -> TriggerCheckpoint:
    return TriggerCheckpoint(epoch=3, checkpoint_id=7)


def commit() -> CommitCheckpoint:
    return CommitCheckpoint(epoch=3, checkpoint_id=7)


def frame(*layout: object) -> tuple[object, ...]:
    return ("frame", (3, None, 1, 10, layout), b"")


class Order:
    epoch = 3


@pytest.mark.parametrize(
    ("step", "item"),
    [
        ("before-barrier", ("message", trigger())),
        ("before-barrier", frame(("rows", None), CheckpointBarrier(7))),
        ("after-manifest", ("message", commit())),
        ("restoring", ("loaded", Order(), object())),
    ],
)
def test_what_a_task_hears_brings_it_to_a_step(
    tmp_path: Path, step: str, item: tuple[object, ...]
) -> None:
    for each in STEPS:
        failpoints.arm(tmp_path, each)
    with pytest.raises(Died):
        TaskFailpoints(str(TASK), tmp_path).hears(item, 3)
    assert [each for each in STEPS if failpoints.fired(tmp_path, each)] == [step]


@pytest.mark.parametrize(
    "item",
    [
        frame(("schema", 0), ("rows", None)),
        ("credit", 3, None, 10),
        ("loaded", Order(), None),  # nothing is restored
        (
            "message",
            ResolveTransactions(epoch=3, sink="out", commit=()),
        ),
    ],
)
def test_other_news_brings_a_task_nowhere(
    tmp_path: Path, deaths: list[tuple[int, int]], item: tuple[object, ...]
) -> None:
    for each in STEPS:
        failpoints.arm(tmp_path, each)
    TaskFailpoints(str(TASK), tmp_path).hears(item, 3)
    assert deaths == []


def test_a_task_is_aligning_while_barriers_are_missing(
    tmp_path: Path, deaths: list[tuple[int, int]]
) -> None:
    failpoints.arm(tmp_path, "while-aligned")
    task = TaskFailpoints(str(TASK), tmp_path)
    task.stands(None, 3)
    assert deaths == []
    with pytest.raises(Died):
        task.stands(7, 3)


@pytest.mark.parametrize(
    ("message", "before", "after"),
    [
        (acknowledgement(), "after-snapshot", "after-ack"),
        (COMMITTED, "mid-commit", "before-marker"),
        (RESOLVED, "commit-replay", None),
    ],
)
def test_what_a_task_says_is_a_step_before_it_is_sent_and_another_once_it_has_arrived(
    tmp_path: Path,
    message: ToCoordinator,
    before: str,
    after: str | None,
) -> None:
    task, reply = TaskFailpoints(str(TASK), tmp_path), Reply()
    failpoints.arm(tmp_path, before)
    with pytest.raises(Died):
        task.speaks(message)
    assert failpoints.fired(tmp_path, before) is not None
    if after is None:
        task.has_spoken(message, reply)
        return
    failpoints.arm(tmp_path, after)
    with pytest.raises(Died):
        task.has_spoken(message, reply)
    assert reply.waited_for


def test_a_call_to_an_actor_that_is_gone_counts_as_made(tmp_path: Path) -> None:
    failpoints.arm(tmp_path, "after-ack")
    with pytest.raises(Died):
        TaskFailpoints(str(TASK), tmp_path).has_spoken(
            acknowledgement(), Reply(ConnectionError("gone"))
        )


# ---------------------------------------------------------------------- the coordinator's steps


def a_core() -> CoordinatorCore:
    return CoordinatorCore(
        JobShape(job="j", tasks=(OTHER, TASK), sources=(OTHER, TASK)),
        CoordinatorRules(),
        owner="o",
        restore=None,
        jitter=lambda: 0.0,
    )


class Pending:
    def __init__(self, *waiting: TaskId) -> None:
        self.waiting = set(waiting)


class Running:
    """The part of a coordinator core that failpoints look at."""

    epoch = 3

    def __init__(self, *waiting: TaskId) -> None:
        self.attempt = self
        self.pending = {7: Pending(*waiting)}


def coordinator(directory: Path, *waiting: TaskId) -> CoordinatorFailpoints:
    return CoordinatorFailpoints(directory, Running(*waiting))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("step", "instruction"),
    [
        ("before-barrier", i.Send(TASK, trigger())),
        ("after-ack", i.WriteRecord(1, manifest())),
        ("before-marker", i.WriteRecord(1, CommittedMarker(checkpoint_id=7, epoch=3))),
        ("restoring", i.ReadManifest(1, 7)),
    ],
)
def test_what_the_coordinator_is_about_to_do_is_a_step(
    tmp_path: Path, step: str, instruction: i.Instruction
) -> None:
    for each in STEPS:
        failpoints.arm(tmp_path, each)
    with pytest.raises(Died):
        coordinator(tmp_path).orders(instruction)
    assert [each for each in STEPS if failpoints.fired(tmp_path, each)] == [step]


def test_a_durable_manifest_of_which_nobody_knows_is_a_step(
    tmp_path: Path, deaths: list[tuple[int, int]]
) -> None:
    failpoints.arm(tmp_path, "after-manifest")
    failpoint = coordinator(tmp_path)
    failpoint.has_stored(i.WriteRecord(1, CommittedMarker(checkpoint_id=7, epoch=3)))
    assert deaths == []
    with pytest.raises(Died):
        failpoint.has_stored(i.WriteRecord(1, manifest()))


@pytest.mark.parametrize(
    ("step", "event"), [("mid-commit", COMMITTED), ("commit-replay", RESOLVED)]
)
def test_the_first_answer_of_a_sink_is_a_step_unless_it_is_of_an_older_epoch(
    tmp_path: Path, deaths: list[tuple[int, int]], step: str, event: ToCoordinator
) -> None:
    failpoints.arm(tmp_path, step)
    failpoint = coordinator(tmp_path)
    Running.epoch = 4
    try:
        failpoint.hears(event)
    finally:
        Running.epoch = 3
    assert deaths == []
    with pytest.raises(Died):
        failpoint.hears(event)


def test_some_have_acknowledged_only_while_others_have_not(
    tmp_path: Path, deaths: list[tuple[int, int]]
) -> None:
    failpoints.arm(tmp_path, "while-aligned")
    coordinator(tmp_path, TASK).hears(acknowledgement(TASK))
    assert deaths == []
    with pytest.raises(Died):
        coordinator(tmp_path, TASK, OTHER).hears(acknowledgement(TASK))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("mid-commit", commit()),
        ("commit-replay", ResolveTransactions(epoch=3, sink="out", commit=())),
    ],
)
def test_a_sink_has_been_told_once_the_message_has_arrived(
    tmp_path: Path, step: str, message: i.ToTask
) -> None:
    failpoints.arm(tmp_path, step)
    reply = Reply()
    with pytest.raises(Died):
        coordinator(tmp_path).has_sent(message, reply)
    assert reply.waited_for
