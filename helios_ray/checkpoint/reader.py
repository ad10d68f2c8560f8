"""Open checkpoints offline: no job, no Ray, only the storage and the keys.

Why it exists: state is data. Whoever has the keys can look at it as Arrow tables, compare two
checkpoints, or feed another program.

May import: catalog, config, keys, snapshots, storage, errors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal, TypeAlias, overload

import pyarrow as pa

from helios_ray.checkpoint.catalog import CheckpointCatalog
from helios_ray.checkpoint.config import EncryptionConfig
from helios_ray.checkpoint.keys import KeyProvider
from helios_ray.checkpoint.layout import CHECKPOINTS
from helios_ray.checkpoint.manifest import CheckpointSummary
from helios_ray.checkpoint.snapshots import Sealer
from helios_ray.checkpoint.storage import CheckpointStorage, ObjectStore
from helios_ray.errors import CheckpointNotFoundError
from helios_ray.records import Manifest, StateObject

Place: TypeAlias = str | os.PathLike[str] | CheckpointStorage
"""A directory, a URL such as ``s3://bucket/prefix``, or a description of storage."""

_BROADCAST = "broadcast"  # the value of StateKind.BROADCAST: every subtask holds the same rows


def list_checkpoints(place: Place, *, job: str | None = None) -> list[CheckpointSummary]:
    """Every checkpoint of a job, oldest first. Needs no keys, and so authenticates nothing.

    Args:
        place: the job's directory, or the one above it.
        job: which job, if there are several.

    Raises:
        CheckpointNotFoundError: there is no job there, or several and none was named.
        StorageError: storage cannot be read.
    """
    return _catalog(place, job, None).summaries()


@overload
def read_state(
    place: Place,
    checkpoint: int | Literal["latest"] = "latest",
    *,
    operator: str,
    name: str,
    keys: KeyProvider | None = None,
    job: str | None = None,
) -> pa.Table: ...


@overload
def read_state(
    place: Place,
    checkpoint: int | Literal["latest"] = "latest",
    *,
    operator: str,
    name: None = None,
    keys: KeyProvider | None = None,
    job: str | None = None,
) -> dict[str, pa.Table]: ...


def read_state(
    place: Place,
    checkpoint: int | Literal["latest"] = "latest",
    *,
    operator: str,
    name: str | None = None,
    keys: KeyProvider | None = None,
    job: str | None = None,
) -> pa.Table | dict[str, pa.Table]:
    """Read an operator's state out of a checkpoint, all subtasks together.

    Args:
        place: the job's directory, or the one above it.
        checkpoint: an id, or ``"latest"``, the newest that counts.
        operator: uid of the operator.
        name: one state table; without it, all of them by name.
        keys: who has the keys; None is the default key file.
        job: which job, if there are several.

    Returns:
        The table, or tables by name. Rows come in the order of the subtasks; state that
        every subtask holds alike (broadcast) comes once.

    Raises:
        CheckpointNotFoundError: no such job, checkpoint, operator or table; names what is there.
        KeyNotFoundError, WrongKeyError: the keys do not fit.
        TamperedObjectError, TruncatedObjectError, UnknownFormatError: it cannot be trusted or read.

    Example:
        Given a job that ran with its defaults::

            hot = read_state(".helios/checkpoints", operator="hot", name="runs")
            hot.group_by("key").aggregate([("count", "sum")])
    """
    catalog = _catalog(place, job, keys)
    manifest = catalog.manifest(_resolve(catalog, checkpoint))
    found = [o for task in manifest.tasks for o in task.objects if o.operator == operator]
    if not found:
        raise _missing(f"operator {operator!r}", manifest, _operators(manifest))
    names = sorted({o.name for o in found})
    if name is None:
        return {one: _read_one(catalog, manifest, found, one) for one in names}
    if name not in names:
        raise _missing(f"state {name!r} of operator {operator!r}", manifest, names)
    return _read_one(catalog, manifest, found, name)


def _read_one(
    catalog: CheckpointCatalog, manifest: Manifest, objects: Iterable[StateObject], name: str
) -> pa.Table:
    chosen = sorted((o for o in objects if o.name == name), key=lambda o: o.subtask)
    if chosen[0].kind == _BROADCAST:
        chosen = [o for o in chosen if o.subtask == chosen[0].subtask]
    tables = [catalog.read_table(o, manifest) for o in chosen]
    return pa.concat_tables(tables, promote_options="default")


def _resolve(catalog: CheckpointCatalog, checkpoint: int | str) -> int:
    if isinstance(checkpoint, int):
        return checkpoint
    if checkpoint != "latest":
        raise CheckpointNotFoundError(
            f"checkpoint must be an id or 'latest', got {checkpoint!r}. See list_checkpoints(...)."
        )
    counted = [s.checkpoint_id for s in catalog.summaries() if not s.superseded]
    if not counted:
        raise CheckpointNotFoundError(
            f"There is no complete checkpoint in {catalog.store.describe()} yet. Let the job "
            "complete one, or correct the storage and the job's name."
        )
    return counted[-1]


def _catalog(place: Place, job: str | None, keys: KeyProvider | None) -> CheckpointCatalog:
    store = CheckpointStorage.of(place).open()
    # Reading offline is no place to refuse a job that was run without encryption.
    sealer = Sealer(EncryptionConfig(key_provider=keys, accept_unencrypted=True))
    return CheckpointCatalog(_job_store(store, job), sealer)


def _job_store(store: ObjectStore, job: str | None) -> ObjectStore:
    if job is not None:
        return store.scoped(job)
    if store.list(CHECKPOINTS):
        return store
    jobs = sorted(
        {path.split(f"/{CHECKPOINTS}")[0] for path in store.list() if f"/{CHECKPOINTS}" in path}
    )
    if len(jobs) == 1:
        return store.scoped(jobs[0])
    found = f"the jobs {', '.join(jobs)}" if jobs else "no job's checkpoints"
    raise CheckpointNotFoundError(
        f"Expected one job's checkpoints in {store.describe()} and found {found}. "
        + ("Choose one with job=." if jobs else "Correct the path, or give job=.")
    )


def _operators(manifest: Manifest) -> list[str]:
    return sorted({o.operator for task in manifest.tasks for o in task.objects})


def _missing(what: str, manifest: Manifest, have: Iterable[str]) -> CheckpointNotFoundError:
    return CheckpointNotFoundError(
        f"Checkpoint {manifest.checkpoint_id} of job {manifest.job!r} has no {what} (it has: "
        f"{', '.join(have) or 'none'}). Choose one of those."
    )
