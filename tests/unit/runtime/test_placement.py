"""A job that a cluster can never hold is refused, and says what to do."""

from __future__ import annotations

from typing import Any

import pytest

from helios_ray.errors import ConfigError
from helios_ray.plan.physical import Chain, PhysicalPlan, Resources
from helios_ray.runtime.placement import check_placement

NODES = [{"CPU": 4.0, "GPU": 1.0, "memory": 1e9}, {"CPU": 8.0, "memory": 2e9, "disk": 1.0}]


def plan(parallelism: int, **resources: Any) -> PhysicalPlan:
    chain = Chain(uid="model", name="m", parallelism=parallelism, resources=Resources(**resources))
    return PhysicalPlan(job="score", chains=(chain,), edges=())


@pytest.mark.parametrize(
    ("parallelism", "resources"),
    [
        (1, {}),
        (2, {"num_gpus": 0.5}),
        (10, {"num_gpus": 0.1}),
        (12, {"num_cpus": 1}),
        (1, {"num_cpus": 8, "resources": {"disk": 1}}),
        (1, {"memory": 2_000_000_000}),
    ],
)
def test_what_fits_is_accepted(parallelism: int, resources: dict[str, Any]) -> None:
    check_placement(plan(parallelism, **resources), NODES)
    with pytest.raises(ConfigError):
        check_placement(plan(parallelism, **resources), [])


@pytest.mark.parametrize(
    ("parallelism", "resources", "message"),
    [
        (1, {"num_gpus": 2}, r"'model': each.*num_gpus=2, and no node.*num_gpus=1"),
        (1, {"num_cpus": 5, "num_gpus": 1}, r"num_cpus=5, num_gpus=1, and no node"),
        (2, {"num_gpus": 1}, r"'score' asks for num_gpus=2 \('model' 2 x 1\).*has 1 in all"),
        (13, {"num_cpus": 1}, r"num_cpus=13.*12 in all"),
        (1, {"resources": {"TPU": 1}}, r"TPU=1, and no node"),
        (2, {"memory": 2_000_000_000}, r"memory=4e\+09"),
    ],
)
def test_what_can_never_start_is_refused(
    parallelism: int, resources: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        check_placement(plan(parallelism, **resources), NODES)
    assert "request_resources" in str(refusal.value)
