"""From a Ray dataset through a job into a Ray dataset: each row once, whatever dies."""

from __future__ import annotations

import pickle
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import ray
import ray.data

from helios_ray import DataStream, JobHandle, NoRestart, PlanWarning, StreamExecutionEnvironment
from helios_ray.checkpoint import CheckpointConfig
from helios_ray.errors import ConfigError, JobFailedError, PlanError, StateMismatchError
from helios_ray.protocol.instructions import JobStatus
from helios_ray.runtime.ray_dataset import RayDatasetSource
from helios_ray.testing import (
    await_report,
    create_test_config,
    kill_coordinator,
    kill_operator,
    lose_job,
)
from tests.integration.runtime.support import SOON, WAIT, actor_names, run_program, said

ROWS = 4_000
BLOCKS = 20

# Ray Data starts many processes, and a fresh one may take seconds.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def config(tmp_path: Path) -> CheckpointConfig:
    return create_test_config(tmp_path, interval=SOON, retain_count=20)


def squares(rows: int = ROWS, blocks: int = BLOCKS) -> Any:
    """Computed only when it is asked for."""

    def square(batch: dict[str, Any]) -> dict[str, Any]:
        return {"id": batch["id"], "square": batch["id"] ** 2}

    return ray.data.range(rows, override_num_blocks=blocks).map_batches(square)


def stored(rows: int = ROWS, order: int = 1, columns: tuple[str, ...] = ("id", "square")) -> Any:
    """The same rows, computed already."""
    ids = list(range(rows))[::order]
    table = pa.table({"id": ids, "square": [i * i for i in ids]}).select(columns)
    size = rows // BLOCKS
    return ray.data.from_arrow([table.slice(start, size) for start in range(0, rows, size)])


class Halve:
    """A model."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        return batch.append_column("half", pa.array([i / 2 for i in batch["id"].to_pylist()]))


def paced(batch: pa.Table, gate: str) -> pa.Table:
    """Lets a block pass every so often, all of them once a file is there."""
    deadline = time.monotonic() + 0.4
    while not Path(gate).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return batch


def environment(config: CheckpointConfig) -> StreamExecutionEnvironment:
    return StreamExecutionEnvironment().with_checkpoint_config(config)


def model_over(
    config: CheckpointConfig, dataset: Any, gate: Path, parallelism: int = 1
) -> StreamExecutionEnvironment:
    """The source at its pace in one actor, the model and the results in another."""
    env = environment(config)
    rows = env.from_ray_dataset(dataset, uid="read", parallelism=parallelism)
    rows.map_batches(
        paced,
        batch_format="pyarrow",
        fn_kwargs={"gate": str(gate)},
        schema=rows.schema,
        parallelism=parallelism,
        uid="paced",
    ).map_batches(
        Halve, batch_size=100, batch_format="pyarrow", concurrency=1, num_cpus=0.02, uid="model"
    ).collect(uid="out")
    return env


def begun(config: CheckpointConfig, name: str, dataset: Any, gate: Path, **options: Any) -> Any:
    """A job that has committed something and read only a part of its input."""
    job = model_over(config, dataset, gate).execute_async(name, **options)
    report = await_report(job, lambda r: r.committed and r.rows_read, "rows and a commit")
    assert report.rows_read < ROWS
    return job


def check_all_there(dataset: Any, rows: int = ROWS) -> None:
    found = pa.concat_tables([t.select(["id", "square", "half"]) for t in tables(dataset)])
    assert found.num_rows == rows
    assert Counter(found["id"].to_pylist()) == Counter(range(rows))
    for row in found.to_pylist():
        assert row == {"id": row["id"], "square": row["id"] ** 2, "half": row["id"] / 2}


def tables(dataset: Any) -> list[pa.Table]:
    return list(ray.get(dataset.to_arrow_refs()))


def test_a_dataset_goes_through_a_class_and_comes_out_as_a_dataset(
    name: str, tmp_path: Path, config: CheckpointConfig
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    env = model_over(config, squares(), gate, parallelism=2)
    result = env.execute(name)

    dataset = result.as_ray_dataset()
    assert isinstance(dataset, ray.data.Dataset)
    check_all_there(dataset)
    assert dataset.sum("half") == sum(range(ROWS)) / 2
    assert result.collect("out").num_rows == dataset.count() == ROWS
    assert actor_names(name) == [], "the holder of the blocks ends with the job"


@pytest.mark.parametrize("victim", ["read", "model", "coordinator", "holder"])
def test_whatever_is_killed_while_a_dataset_is_read_each_row_comes_once(
    name: str, tmp_path: Path, config: CheckpointConfig, victim: str
) -> None:
    gate = tmp_path / "gate"
    job = begun(config, name, stored(), gate)
    before = job.report()
    match victim:
        case "coordinator":
            kill_coordinator(job)
        case "holder":
            [holder] = [n for n in actor_names(name) if "blocks" in n]
            ray.kill(ray.get_actor(holder, namespace="helios"), no_restart=False)
            kill_operator(job, "read")
        case _:
            kill_operator(job, victim)
    gate.touch()

    result = job.wait(WAIT)
    assert result.report.epoch > before.epoch
    assert result.report.restored is not None
    check_all_there(result.as_ray_dataset())


def test_a_program_that_runs_again_resumes_with_the_same_dataset_in_other_blocks(
    name: str, tmp_path: Path, config: CheckpointConfig
) -> None:
    gate = tmp_path / "gate"
    lose_job(begun(config, name, squares(), gate))
    gate.touch()

    again = model_over(config, squares(blocks=7), gate).execute_async(name)
    result = again.wait(WAIT)
    assert result.report.restored is not None
    check_all_there(result.as_ray_dataset("out"))


def test_a_job_is_not_resumed_with_another_dataset(
    name: str, tmp_path: Path, config: CheckpointConfig
) -> None:
    gate = tmp_path / "gate"
    lose_job(begun(config, name, stored(), gate))
    gate.touch()

    others = {
        "4,000 rows, and this one has 4,001": stored(ROWS + 1),
        "'square: int64'.*and this one has": stored(columns=("id",)),
        "other values, or the same rows in an": stored(order=-1),
    }
    for message, other in others.items():
        with pytest.raises(StateMismatchError, match=message):
            model_over(config, other, gate).execute(name)
    # Nothing was harmed: with the dataset that it was started with it goes on.
    check_all_there(model_over(config, stored(), gate).execute(name).as_ray_dataset())


PROGRAM = """
import sys
from pathlib import Path
import ray
from tests.integration.runtime.test_ray_dataset import begun, create_test_config, squares, SOON
name, directory, address = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
config = create_test_config(Path(directory), interval=SOON, retain_count=20)
begun(config, name, squares(), Path(directory, "gate"), detached=True)
print("LEFT", flush=True)
"""


def test_a_detached_job_reads_on_when_the_program_that_had_the_dataset_is_gone(
    name: str, tmp_path: Path
) -> None:
    program = run_program(PROGRAM, name, tmp_path, ray.get_runtime_context().gcs_address)
    said(program, "LEFT")
    assert program.wait() == 0

    job = JobHandle.attach(name)
    before = job.report()
    kill_operator(job, "read")
    (tmp_path / "gate").touch()
    result = job.wait(WAIT)
    assert before.rows_read < ROWS
    check_all_there(result.as_ray_dataset())
    while any("blocks" in actor for actor in actor_names(name)):
        assert job.status() is JobStatus.FINISHED  # its holder looks for that now and then


def test_tensors_pandas_blocks_and_blocks_without_rows(name: str, config: CheckpointConfig) -> None:
    def images(batch: dict[str, Any]) -> dict[str, Any]:
        ids = batch["id"]
        return {"id": ids, "image": np.broadcast_to(ids[:, None, None], (len(ids), 2, 3)).copy()}

    tensors = (
        ray.data.range(60, override_num_blocks=6)
        .filter(lambda row: row["id"] >= 20)
        .map_batches(images)
    )
    frames = ray.data.from_pandas(
        [pd.DataFrame({"id": [1, 2], "s": ["a", "b"]}), pd.DataFrame({"id": [3], "s": [None]})]
    )
    env = environment(config)
    rows = env.from_ray_dataset(tensors, uid="tensors")
    sums = rows.map_batches(
        lambda b: {"id": b["id"], "sum": b["image"].sum(axis=(1, 2))}, uid="sum"
    )
    sums.collect(uid="sums")
    rows.collect(uid="images")
    texts = env.from_ray_dataset(frames, uid="frames")
    texts.collect(uid="texts")
    assert rows.schema.field("image").type == pa.fixed_shape_tensor(pa.int64(), [2, 3])
    assert texts.schema.names == ["id", "s"]

    result = env.execute(name)
    assert result.collect("sums").sort_by("id").to_pydict() == {
        "id": list(range(20, 60)),
        "sum": [6 * i for i in range(20, 60)],
    }
    assert result.collect("texts").to_pydict() == {"id": [1, 2, 3], "s": ["a", "b", None]}
    back = result.as_ray_dataset("images").take_batch(40)
    assert back["image"].shape == (40, 2, 3)
    assert (back["image"][:, 1, 2] == back["id"]).all()


def test_a_dataset_without_rows_is_read_to_its_end(name: str, config: CheckpointConfig) -> None:
    env = environment(config)
    env.from_ray_dataset(ray.data.range(10).filter(lambda row: row is None), uid="none").collect(
        uid="out"
    )
    result = env.execute(name)
    assert result.collect().num_rows == 0
    assert result.as_ray_dataset().count() == 0


@pytest.mark.usefixtures("ray_cluster")
def test_what_cannot_be_read_is_refused_when_the_job_is_built() -> None:
    env = StreamExecutionEnvironment()
    with pytest.raises(PlanError, match=r"expected a ray\.data\.Dataset, got list"):
        env.from_ray_dataset([1, 2])
    ragged = ray.data.from_items([{"a": np.zeros(2)}, {"a": np.zeros(3)}])
    with pytest.raises(ConfigError, match=r"no common schema.*Field a has incompatible types"):
        env.from_ray_dataset(ragged)
    objects = ray.data.from_items([{"odd": object}])
    with pytest.raises(ConfigError, match=r"drop_columns\(\['odd'\]\)"):
        env.from_ray_dataset(objects)
    with pytest.raises(ConfigError, match="stays with the program that has it"):
        pickle.dumps(RayDatasetSource(ray.data.range(10)))


def score(stream: DataStream, **options: Any) -> DataStream:
    return stream.map_batches(lambda batch: batch, schema=stream.schema, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_gpus": 1, "concurrency": 2}, r"'model': each of its subtasks.*num_gpus=1, and no"),
        ({"num_cpus": 1, "concurrency": 3}, r"asks for num_cpus=3.*'model' 3 x 1.*has 2 in all"),
    ],
)
def test_a_model_that_the_cluster_has_no_room_for_is_announced_at_once(
    name: str, config: CheckpointConfig, options: dict[str, Any], message: str
) -> None:
    env = environment(config)
    score(env.from_range(10, uid="numbers"), uid="model", **options).collect(uid="out")
    with pytest.warns(PlanWarning, match=message):
        handle = env.execute_async(name)
    handle.cancel()
    assert actor_names(name) == []


def test_rows_that_a_model_fails_on_are_dead_letters_and_all_others_come_through(
    name: str, config: CheckpointConfig
) -> None:
    class Model:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            if 13 in batch["id"]:
                raise ValueError("unlucky")
            return {"id": np.repeat(batch["id"], 2)}

    env = environment(config).with_restart_strategy(NoRestart())
    scored = env.from_ray_dataset(ray.data.range(100), uid="read").map_batches(
        Model, on_error="dead_letter", uid="model"
    )
    scored.collect(uid="out")
    scored.dead_letters().collect(uid="letters")
    result = env.execute(name)
    assert Counter(result.collect("out")["id"].to_pylist()) == Counter(
        {i: 2 for i in range(100) if i != 13}
    )
    [letter] = result.collect("letters").to_pylist()
    assert letter["row"] == '{"id": 13}'
    assert letter["error"] == "ValueError: unlucky"
    assert letter["position"].startswith("dataset @ row ")

    env = environment(config).with_restart_strategy(NoRestart())
    env.from_ray_dataset(ray.data.range(100), uid="read").map_batches(Model, uid="model").collect(
        uid="out"
    )
    with pytest.raises(JobFailedError, match="unlucky on rows"):
        env.execute(name + "-raise")
