"""Each test of the runtime has its own job name, and leaves no job behind."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import ray

from helios_ray.runtime.deployment import NAMESPACE


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the test's job. What a failed test leaves running is killed."""
    request.getfixturevalue("ray_cluster")
    job = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name.removeprefix("test_")).strip("-")[:100]
    yield job
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE and actor["name"] == f"helios:{job}:coordinator":
            ray.kill(ray.get_actor(actor["name"], NAMESPACE), no_restart=True)
