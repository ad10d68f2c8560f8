"""The blocks of a Ray dataset, where every process of a job can reach them.

Why it exists: an object reference counts only as long as its owner lives, and only inside of
what Ray itself carries; a job's description is bytes. So one actor, the holder, has the
references, and tasks ask it by name, however often they or the coordinator are restarted.

Who owns the blocks. Those of a job that ends with its program belong to the program; the holder
only knows them, and can be restarted. A detached job outlives the program: its holder copies
the blocks, one at a time, and owns the copies until the job has ended.

May import: connectors, errors, this room's deployment and reports, and ``ray``.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
    RayError,
)

from helios_ray.connectors.block_columns import check_fits, common_schema, conform, stream_schema
from helios_ray.connectors.blocks import Fetch, digest, row_digest, sampled_rows
from helios_ray.errors import CorruptInputError, SourceUnavailableError
from helios_ray.runtime.deployment import NAMESPACE, actor_name, coordinator_name

ANSWER = 60.0
"""Seconds within which a holder says which blocks it has."""

WATCH = 5.0
"""Seconds between the looks that the holder of a detached job takes at its coordinator."""

MISSED = 12
"""Looks in a row that must find no coordinator before the job counts as gone."""


# ------------------------------------------------------------------------------- gathering


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """A dataset that has been computed: references and what is known of each block.

    Args:
        refs: of the blocks that have rows, in order.
        rows: of each.
        schema: into which the rows of each fit.
    """

    refs: list[Any] = field(repr=False)
    rows: list[int]
    schema: pa.Schema

    def sample(self) -> str:
        """Digest of the sampled rows; each block is looked at where it lies."""
        wanted: dict[int, list[int]] = {}
        block, before = 0, 0
        for row in sampled_rows(sum(self.rows)):
            while row >= before + self.rows[block]:
                before += self.rows[block]
                block += 1
            wanted.setdefault(block, []).append(row - before)
        look = ray.remote(_row_digests)
        found = ray.get([look.remote(self.refs[b], self.schema, r) for b, r in wanted.items()])
        return digest(value for values in found for value in values)


def gather(dataset: Any, planned: pa.Schema | None = None) -> Blocks:
    """Compute a dataset, unless that is done, and look at each of its blocks where it lies.

    Args:
        dataset: a ``ray.data.Dataset``.
        planned: the schema that the job was built with, if it was known.

    Raises:
        ConfigError: a block has other columns than were planned for, or of types that no
            stream can hold.
    """
    from ray.data.dataset import MaterializedDataset

    if not isinstance(dataset, MaterializedDataset):
        with _in_order(dataset):
            dataset = dataset.materialize()
    refs = list(dataset.to_arrow_refs())
    measure = ray.remote(_measure)
    found = ray.get([measure.remote(ref) for ref in refs])
    kept = [(ref, rows, schema) for ref, (rows, schema) in zip(refs, found, strict=True) if rows]
    schemas = [
        stream_schema(schema, f"dataset, block {i}") for i, (_, _, schema) in enumerate(kept)
    ]
    if planned is None:
        planned = common_schema(schemas, "dataset") if schemas else _empty_schema(dataset)
    for i, schema in enumerate(schemas):
        check_fits(schema, planned, f"dataset, block {i}")
    return Blocks(
        refs=[ref for ref, _, _ in kept], rows=[rows for _, rows, _ in kept], schema=planned
    )


def known_schema(dataset: Any) -> pa.Schema | None:
    """What a dataset that is not computed yet says of its columns, if Arrow can say it."""
    schema = dataset.schema()
    base = None if schema is None else schema.base_schema
    # Of pandas blocks only the conversion shows what their columns become.
    return stream_schema(base, "dataset") if isinstance(base, pa.Schema) and base.names else None


def _empty_schema(dataset: Any) -> pa.Schema:
    return known_schema(dataset) or pa.schema([])


@contextlib.contextmanager
def _in_order(dataset: Any) -> Iterator[None]:
    """Ray Data gives blocks in the order in which they are done, if it is not told otherwise:
    another order in every run, in which no position could be found again."""
    options = dataset.context.execution_options
    before = options.preserve_order
    options.preserve_order = True
    try:
        yield
    finally:
        options.preserve_order = before


def _measure(block: Any) -> tuple[int, pa.Schema]:
    table = block if isinstance(block, pa.Table) else pa.Table.from_pandas(block)
    return table.num_rows, table.schema


def _row_digests(block: Any, schema: pa.Schema, rows: list[int]) -> list[str]:
    table = conform(block, schema, "dataset")
    return [row_digest(table, row) for row in rows]


# --------------------------------------------------------------------------------- holding


class BlockHolder:
    """The actor that has the references.

    Args:
        listing: a reference to the list of references, in a list, so that Ray hands on the
            reference itself.
        detached_job: whose blocks these are, if the holder is to own them.
    """

    def __init__(self, listing: list[Any], detached_job: str | None) -> None:
        self._refs: list[Any] = list(ray.get(listing[0]))
        if detached_job is None:
            return
        for index, ref in enumerate(self._refs):
            self._refs[index] = ray.put(ray.get(ref))
        with warnings.catch_warnings():
            # Ray warns of a property of its own that this one uses.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._self = ray.get_runtime_context().current_actor
        threading.Thread(target=self._watch, args=(detached_job,), daemon=True).start()

    def ready(self) -> int:
        """How many blocks there are; answers once they are all here."""
        return len(self._refs)

    def refs(self, first: int, last: int) -> list[Any]:
        """References to blocks ``first`` to ``last``, both included."""
        return self._refs[first : last + 1]

    def _watch(self, job: str) -> None:
        """End with the job: nobody else could."""
        missed, pause = 0, threading.Event()
        while missed < MISSED:
            pause.wait(WATCH)
            try:
                coordinator = ray.get_actor(coordinator_name(job), namespace=NAMESPACE)
                if ray.get(coordinator.report.remote(), timeout=ANSWER).status.terminal:
                    break
                missed = 0
            except ValueError:
                missed += 1
            except (RayActorError, GetTimeoutError):
                pass  # being restarted
        ray.kill(self._self, no_restart=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a program keeps of a dataset while its job runs: without it the blocks are freed.

    Args:
        actor: the holder's handle.
        name: by which tasks find it.
        listing: the reference that the holder is restarted with.
    """

    actor: Any
    name: str
    listing: Any

    def release(self) -> None:
        """The job has ended, or never began."""
        ray.kill(self.actor, no_restart=True)


def hold(blocks: Blocks, job: str, uid: str, *, detached: bool) -> Held:
    """Start the holder of a job's blocks and wait until it has them."""
    name = actor_name(job, uid, f"blocks~{secrets.token_hex(4)}")
    listing = ray.put(blocks.refs)
    options: dict[str, Any] = {"name": name, "namespace": NAMESPACE, "num_cpus": 0}
    if detached:
        options["lifetime"] = "detached"
    else:
        options["max_restarts"] = -1
    holder = ray.remote(BlockHolder).options(**options)
    actor: Any = holder.remote([listing], job if detached else None)
    try:
        ray.get(actor.ready.remote())
    except RayError:
        ray.kill(actor, no_restart=True)
        raise
    return Held(actor=actor, name=name, listing=listing)


# --------------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class FromHolder:
    """How a task gets blocks: from the holder of that name."""

    name: str

    def __call__(self, first: int, last: int) -> Fetch:
        """See :class:`helios_ray.connectors.blocks.BlocksSource`.

        Raises:
            CorruptInputError: the holder is gone, and the blocks with it.
            SourceUnavailableError: it does not answer now.
        """
        try:
            actor = ray.get_actor(self.name, namespace=NAMESPACE)
        except ValueError as error:
            raise CorruptInputError(_gone(f"actor {self.name!r}, which held them, is gone")) from (
                error
            )
        try:
            refs = ray.get(actor.refs.remote(first, last), timeout=ANSWER)
        except (RayActorError, GetTimeoutError) as error:
            raise SourceUnavailableError(
                f"the blocks of the dataset cannot be asked for: actor {self.name!r} does not "
                f"answer ({error}). It is asked again when the job restarts."
            ) from error
        return from_refs(refs, first)


def from_refs(refs: list[Any], first: int = 0) -> Fetch:
    """Bring blocks here by their references, the first of which is block ``first``."""
    return lambda index: _Coming(refs[index - first].future(), index)


class _Coming:
    """A block on its way, by Ray."""

    def __init__(self, future: Any, index: int) -> None:
        self._future = future
        self._index = index

    def done(self) -> bool:
        return bool(self._future.done())

    def result(self) -> Any:
        try:
            return self._future.result()
        except ObjectLostError as error:
            raise CorruptInputError(_gone(f"block {self._index} is lost ({error})")) from error


def _gone(what: str) -> str:
    return (
        f"the blocks of the dataset are gone from Ray's object store: {what}. Run the program "
        f"again: it computes the dataset anew and resumes where the last checkpoint stands."
    )
