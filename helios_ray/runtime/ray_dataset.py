"""A Ray dataset as the source of a job.

Why it exists: what was prepared with Ray Data goes through a job and comes out exactly once,
without a detour over files. The dataset is computed once, when the job is submitted; its blocks
stay where they are in Ray's object store, and no row passes through the program.

On resuming: a program that runs again gives the dataset again. It is computed anew, in order,
and taken only if it is the same: equal columns, number of rows and sampled values.

May import: plan, connectors, errors, this room's blocks, and ``ray``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import pyarrow as pa

from helios_ray.connectors.base import Source, Split, SplitReader
from helios_ray.connectors.blocks import BlocksSource
from helios_ray.errors import ConfigError, PlanError
from helios_ray.plan.physical import PhysicalPlan
from helios_ray.runtime.dataset_blocks import (
    Blocks,
    FromHolder,
    Held,
    from_refs,
    gather,
    hold,
    known_schema,
)


class RayDatasetSource(Source):
    """Reads a ``ray.data.Dataset``. The program's own end of it: it stays with the driver.

    Args:
        dataset: any that Ray Data can turn into Arrow tables, of any size.

    Raises:
        PlanError: ``dataset`` is no dataset.
        ConfigError: a column has a type that no stream can hold. Tensors of one shape become
            ``pyarrow.fixed_shape_tensor``; tensors of several shapes and pickled objects are
            refused by name.
    """

    def __init__(self, dataset: Any) -> None:
        from ray.data.dataset import Dataset, MaterializedDataset

        if not isinstance(dataset, Dataset):
            raise PlanError(
                f"from_ray_dataset: expected a ray.data.Dataset, got {type(dataset).__name__}. "
                f"Make one with ray.data.read_parquet(...) or ray.data.from_arrow(...), or use "
                f"from_items([...])."
            )
        self._dataset = dataset
        self._blocks: Blocks | None = None
        self._local: BlocksSource | None = None
        if isinstance(dataset, MaterializedDataset):
            self._blocks = gather(dataset)
            self._schema: pa.Schema | None = self._blocks.schema
        else:
            self._schema = known_schema(dataset)

    def __repr__(self) -> str:
        rows = "" if self._blocks is None else f"({sum(self._blocks.rows):,} rows)"
        return f"{type(self._dataset).__name__}{rows}"

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            "a Ray dataset stays with the program that has it; its job reads it through a "
            "holder. Use it with env.from_ray_dataset(dataset), and start the job by execute()."
        )

    @property
    def bounded(self) -> bool:
        return True

    def schema(self) -> pa.Schema | None:
        return self._schema

    def blocks(self) -> Blocks:
        """The blocks, computed at the first call."""
        if self._blocks is None:
            self._blocks = gather(self._dataset, self._schema)
        return self._blocks

    def held(self, held: Held) -> BlocksSource:
        """The same rows, for the processes of a job."""
        blocks = self.blocks()
        return BlocksSource(
            rows=blocks.rows,
            schema=blocks.schema,
            sample=blocks.sample(),
            connect=FromHolder(held.name),
        )

    def discover_splits(self, parallelism: int) -> Sequence[Split]:
        return self._here().discover_splits(parallelism)

    def open_split(self, split: Split) -> SplitReader:
        return self._here().open_split(split)

    def _here(self) -> BlocksSource:
        """The same rows, for this process."""
        if self._local is None:
            blocks = self.blocks()
            self._local = BlocksSource(
                rows=blocks.rows,
                schema=blocks.schema,
                sample=blocks.sample(),
                connect=lambda first, last: from_refs(blocks.refs[first : last + 1], first),
            )
        return self._local


def hold_datasets(plan: PhysicalPlan, *, detached: bool) -> tuple[PhysicalPlan, tuple[Held, ...]]:
    """Compute the datasets that a job reads and put what its processes need into its plan.

    Args:
        plan: as compiled.
        detached: the job outlives the program, so the blocks must as well: they are copied.

    Returns:
        The plan to run, and what the program must keep until the job has ended.

    Raises:
        ConfigError: the blocks of a dataset are not what its schema told.
    """
    chains, kept = [], []
    try:
        for chain in plan.chains:
            spec = chain.source
            if spec is not None and isinstance(spec.source, RayDatasetSource):
                dataset = spec.source
                held = hold(dataset.blocks(), plan.job, spec.uid, detached=detached)
                kept.append(held)
                chain = replace(chain, source=replace(spec, source=dataset.held(held)))
            chains.append(chain)
    except BaseException:
        for held in kept:
            held.release()
        raise
    return replace(plan, chains=tuple(chains)) if kept else plan, tuple(kept)
