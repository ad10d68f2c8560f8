"""map_batches of a stream: Ray Data's arguments, and what a job makes of them."""

from __future__ import annotations

from typing import Any

import pytest

from helios_ray import StreamExecutionEnvironment
from helios_ray.errors import ConfigError


class Model:
    def __init__(self, factor: int = 1) -> None:
        self.factor = factor

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"y": batch["item"] * self.factor}


def test_concurrency_and_resources_give_the_operator_actors_of_its_own() -> None:
    env = StreamExecutionEnvironment()
    numbers = env.from_range(10, uid="numbers")
    numbers.map_batches(Model, concurrency=3, num_gpus=1, num_cpus=2, uid="model").collect(
        uid="out"
    )
    chains = {chain.uid: chain for chain in env.compile("job").plan.chains}
    assert chains["model"].parallelism == 3
    assert chains["model"].resources.num_gpus == 1
    assert chains["model"].resources.num_cpus == 2
    assert chains["numbers"].resources.num_gpus == 0
    assert "model" not in chains["numbers"].uids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"concurrency": (1, 4)}, r"got the range \(1, 4\).*concurrency=4"),
        ({"concurrency": ()}, r"got the range \(\)"),
        ({"concurrency": 0}, "concurrency must be a whole number from 1"),
        ({"concurrency": 2, "parallelism": 3}, "mean the same thing and differ"),
        ({"compute": object()}, "compute= is an argument of Ray Data only; give concurrency="),
        ({"udf_modifying_row_count": False}, "leave it out: any number of rows"),
        ({"fn_constructor_args": [1, 2]}, "the constructor of Model.*too many positional"),
        ({"fn_kwargs": {"times": 2}}, r"Model.__call__.*unexpected keyword argument 'times'"),
        ({"batch_size": "auto"}, "batch_size must be a positive number"),
    ],
)
def test_arguments_that_cannot_be_honoured_say_what_to_give_instead(
    arguments: dict[str, Any], message: str
) -> None:
    numbers = StreamExecutionEnvironment().from_range(10, uid="numbers")
    with pytest.raises(ConfigError, match=message):
        numbers.map_batches(Model, **arguments)
