"""Stopping, resuming, and every way in which a checkpoint may not be what the job needs."""

from __future__ import annotations

import base64
import secrets
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from helios_ray import DataStream
from helios_ray.checkpoint import CheckpointStorage, EncryptionConfig
from helios_ray.checkpoint.key_file import FileKeyProvider
from helios_ray.errors import (
    CheckpointNotFoundError,
    ConfigError,
    FencedError,
    HeliosError,
    JobCancelledError,
    KeyNotFoundError,
    StateMismatchError,
    StorageNotFoundError,
    StorageUnreachableError,
    TamperedObjectError,
    WrongKeyError,
)
from helios_ray.protocol.instructions import JobStatus
from helios_ray.testing import await_running
from helios_ray.testing.servers import MotoServer
from tests.integration.runtime.support import (
    WAIT,
    Flow,
    column,
    count_per_event,
    no_restart,
    once,
    run_program,
    said,
)


def stopped(flow: Flow, *ids: int) -> int:
    """Run a job over some events, stop it, and return its last checkpoint."""
    job = flow.start()
    await_running(job)
    flow.emit(*ids)
    flow.settled(job)
    result = job.stop(WAIT)
    assert result.status is JobStatus.STOPPED
    assert result.report.committed is not None
    return result.report.committed


def expect_refusal(flow: Flow, error: type[HeliosError], match: str, **arguments: object) -> None:
    """The job does not run, says why, and writes nothing."""
    before = flow.ids()
    with pytest.raises(error, match=match):
        flow.start(**arguments).wait(WAIT)
    assert flow.ids() == before


def test_a_stopped_job_goes_on_exactly_where_it_stopped(name: str, tmp_path: Path) -> None:
    flow = Flow.of(name, tmp_path, transform=count_per_event)
    first = stopped(flow, *range(100))
    assert flow.ids() == once(range(100))
    assert flow.staged() == []

    flow.emit(*range(50, 150))  # while nobody runs
    job = flow.start()
    assert flow.settled(job) == once(range(150)) + Counter(range(50, 100))
    assert job.report().restored == first
    assert Counter(column(flow.output, "times")) == {1: 150, 2: 50}
    job.cancel()


def test_a_cancelled_job_leaves_nothing_prepared_and_can_be_resumed(
    name: str, tmp_path: Path
) -> None:
    flow = Flow.of(name, tmp_path)
    job = flow.start()
    flow.emit(*range(100))
    flow.settled(job)
    flow.emit(*range(100, 200))
    job.cancel()
    assert job.status() is JobStatus.CANCELLED
    with pytest.raises(JobCancelledError, match=name):
        job.wait(WAIT)
    assert flow.staged() == []
    assert flow.ids() == once(range(100)), "what no checkpoint covers is not there"

    again = flow.start()
    assert flow.settled(again) == once(range(200))
    again.cancel()


def test_a_job_starts_from_the_checkpoint_it_is_told_or_from_nothing(
    name: str, tmp_path: Path
) -> None:
    flow = Flow.of(name, tmp_path)
    first = stopped(flow, *range(10))
    flow.emit(*range(10, 20))
    job = flow.start(restore=first)
    assert flow.settled(job) == once(range(20))
    path = job.trigger_checkpoint().path
    job.stop(WAIT)

    expect_refusal(
        flow, CheckpointNotFoundError, "no checkpoint 4711.*Pass one of those", restore=4711
    )

    job = flow.start(restore=path)
    assert flow.settled(job) == once(range(20)), "nothing was new"
    job.stop(WAIT)

    # From nothing: everything is read again, and what stands there stays.
    job = flow.start(restore=None)
    assert flow.settled(job) == once(range(20)) + once(range(20))
    assert job.report().restored is None
    assert job.trigger_checkpoint().checkpoint_id > first, "ids only grow"
    job.cancel()


def test_state_whose_operator_is_gone_is_refused_unless_it_may_be_dropped(
    name: str, tmp_path: Path
) -> None:
    flow = Flow.of(name, tmp_path, transform=count_per_event)
    stopped(flow, *range(10))

    def renamed(events: DataStream) -> DataStream:
        return count_per_event(events).uid("tally")

    other = replace(flow, transform=renamed)
    expect_refusal(
        other, StateMismatchError, r"\['count'\].*the job has \['sink', 'source', 'tally'\]"
    )

    job = other.start(allow_unmatched_state=True)
    flow.emit(*range(20))
    assert flow.settled(job) == once(range(20)) + once(range(10))
    # The new operator counts from one, the source went on where it was.
    assert Counter(column(flow.output, "times")) == {1: 30}
    job.cancel()


def test_another_number_of_key_groups_is_refused(name: str, tmp_path: Path) -> None:
    flow = Flow.of(name, tmp_path, transform=count_per_event)
    stopped(flow, *range(10))
    other = replace(flow, options={"with_max_parallelism": {"max_parallelism": 64}})
    expect_refusal(other, StateMismatchError, "128 key groups, the job asks for 64")


def test_a_missing_and_a_wrong_key_are_told_apart(name: str, tmp_path: Path) -> None:
    flow = Flow.of(name, tmp_path)
    stopped(flow, *range(10))

    def with_keys(path: Path) -> Flow:
        keys = EncryptionConfig(key_provider=FileKeyProvider(path))
        return replace(flow, config=replace(flow.config, encryption=keys))

    expect_refusal(with_keys(tmp_path / "others.json"), KeyNotFoundError, "others.json")

    forged = tmp_path / "forged.json"
    ring = FileKeyProvider(tmp_path / "keys.json")
    text = ring.path.read_text()
    for key_id in ring.key_ids():
        secret = base64.b64encode(ring._key(key_id) or b"").decode()
        assert secret in text
        text = text.replace(secret, base64.b64encode(secrets.token_bytes(32)).decode())
    forged.write_text(text)
    forged.chmod(0o600)
    expect_refusal(with_keys(forged), WrongKeyError, "key")

    job = flow.start()
    flow.emit(*range(10, 20))
    assert flow.settled(job) == once(range(20)), "the right key opens it still"
    job.cancel()


@pytest.mark.parametrize("what", ["manifest", "state"])
def test_a_job_never_falls_back_behind_a_tampered_checkpoint(
    name: str, tmp_path: Path, what: str
) -> None:
    flow = no_restart(Flow.of(name, tmp_path, transform=count_per_event))
    # Enough keys for state that does not fit into the manifest.
    last = stopped(flow, *range(10_000))
    root = tmp_path / "checkpoints" / name
    assert len(list(root.glob("checkpoints/*/manifest"))) > 1, "there is one to fall back to"
    if what == "manifest":
        damaged = root / f"checkpoints/{last:010d}/manifest"
    else:
        damaged = max(root.glob("state/*/count/0/*"))
    sound = damaged.read_bytes()
    damaged.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    expect_refusal(flow, TamperedObjectError, damaged.name)

    damaged.write_bytes(sound)
    job = flow.start()
    flow.emit(*range(10_000, 10_010))
    assert flow.settled(job) == once(range(10_010))
    assert set(column(flow.output, "times")) == {1}
    job.cancel()


def test_storage_that_is_not_there_is_found_when_the_job_is_submitted(
    name: str, tmp_path: Path, moto_server: MotoServer
) -> None:
    flow = Flow.of(name, tmp_path)
    nobody = CheckpointStorage.S3(
        bucket="checkpoints", endpoint_url="http://127.0.0.1:9", key="a", secret="b"
    )
    with pytest.raises(StorageUnreachableError, match=r"127\.0\.0\.1:9"):
        replace(flow, config=replace(flow.config, storage=nobody)).start()
    no_bucket = CheckpointStorage.S3(
        bucket="no-such-bucket",
        region=moto_server.region,
        endpoint_url=moto_server.endpoint_url,
        key=moto_server.access_key,
        secret=moto_server.secret_key,
    )
    with pytest.raises(StorageNotFoundError, match="no-such-bucket"):
        replace(flow, config=replace(flow.config, storage=no_bucket)).start()


def test_two_jobs_of_one_name_on_one_cluster_are_refused(name: str, tmp_path: Path) -> None:
    flow = Flow.of(name, tmp_path)
    job = flow.start()
    await_running(job)
    with pytest.raises(ConfigError, match=f"{name}.*is running already"):
        flow.start()
    flow.emit(*range(10))
    assert flow.settled(job) == once(range(10)), "the first goes on unharmed"
    job.cancel()
    job = flow.start()  # and its name is free again
    assert flow.settled(job) == once(range(10))
    job.cancel()


USURPER = """
import sys, tempfile, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import ray
from tests.integration.runtime.support import Flow
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
         object_store_memory=100 << 20, _temp_dir=tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
flow = Flow.of(sys.argv[1], Path(sys.argv[2]))
job = flow.start()
flow.settled(job)
print("TOOK-OVER", flush=True)
sys.stdin.readline()
flow.settled(job)
job.stop()
print("STOPPED", flush=True)
"""


def test_a_second_cluster_that_takes_the_job_over_fences_the_first(
    name: str, tmp_path: Path
) -> None:
    flow = Flow.of(name, tmp_path)
    job = flow.start()
    flow.emit(*range(100))
    assert flow.settled(job) == once(range(100))
    other = run_program(USURPER, name, tmp_path)
    assert said(other, "TOOK-OVER") == ""

    flow.emit(*range(100, 200))  # both read it; one of them may commit it
    with pytest.raises(FencedError, match="claimed by another run"):
        job.trigger_checkpoint()
    with pytest.raises(FencedError, match=name):
        job.wait(WAIT)

    assert other.stdin is not None
    other.stdin.write("go on\n")
    other.stdin.flush()
    assert said(other, "STOPPED") == ""
    assert other.wait() == 0
    assert flow.ids() == once(range(200))
    assert flow.staged() == []
