"""What an operator, a job and its start may be told, checked where it is said.

Why it exists: every method of the fluent face takes the same per-operator options, and every
start of a job the same job options; each has one spelling and one check.

May import: errors, plan.physical.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypedDict

from helios_ray.errors import ConfigError
from helios_ray.plan.physical import Resources


class OperatorOptions(TypedDict, total=False):
    """What every operator may be told.

    - ``uid``: stable name of its state; the job finds it again by that name.
    - ``name``: for people; shown in plans and metrics.
    - ``parallelism``: number of subtasks; the environment's if not given.
    - ``num_cpus``, ``num_gpus``: logical CPUs and GPUs per subtask, fractions allowed.
    - ``memory``: bytes per subtask that Ray sets aside when it places the actor.
    - ``resources``: custom resources per subtask, by name.

    Operators with different resources run in different actors.
    """

    uid: str | None
    name: str | None
    parallelism: int | None
    num_cpus: float | None
    num_gpus: float | None
    memory: int | None
    resources: Mapping[str, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """How a job is started; what is left to the runtime is None.

    Args:
        buffer_timeout: longest that a row waits in an output buffer.
        ray_options: for ``ray.init``, used only where Ray is not initialized yet.
        detached: the job outlives the program that started it.
        progress: show live progress; None: where a terminal or a notebook is watching.
        allow_unmatched_state: drop state of operators that the job no longer has.
        heartbeat_timeout: silence after which a task counts as dead.
        stall_timeout: time inside one call after which a task counts as hung.
    """

    buffer_timeout: timedelta | None = None
    ray_options: Mapping[str, Any] = field(default_factory=dict)
    detached: bool = False
    progress: bool | None = None
    allow_unmatched_state: bool = False
    heartbeat_timeout: timedelta | None = None
    stall_timeout: timedelta | None = None


def check_count(field_name: str, value: object, where: object) -> int:
    """Return ``value`` if it is a whole number from 1.

    Raises:
        ConfigError: it is not.

    Example:
        >>> check_count("parallelism", 4, "map")
        4
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(
            f"{where}: {field_name} must be a whole number from 1, got {value!r}. "
            f"Leave it out for the default."
        )
    return value


def check_resources(
    where: object,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    memory: int | None = None,
    resources: Mapping[str, float] | None = None,
) -> Resources | None:
    """The resources asked for, or None if none were.

    Raises:
        ConfigError: an amount is negative or not a number.
    """
    if num_cpus is None and num_gpus is None and memory is None and not resources:
        return None
    amounts = {"num_cpus": num_cpus, "num_gpus": num_gpus, "memory": memory, **(resources or {})}
    for name, amount in amounts.items():
        wrong = isinstance(amount, bool) or not isinstance(amount, int | float)
        if amount is not None and (wrong or amount < 0):
            raise ConfigError(
                f"{where}: {name} must be a number from 0, got {amount!r}. "
                f"Leave it out for the default."
            )
    usual = Resources()
    return Resources(
        num_cpus=usual.num_cpus if num_cpus is None else num_cpus,
        num_gpus=usual.num_gpus if num_gpus is None else num_gpus,
        memory=memory,
        resources=dict(resources or {}),
    )


def node_fields(options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Turn checked :class:`OperatorOptions` into fields of a graph node.

    Raises:
        TypeError: there is no such option; offers the nearest.
        ConfigError: a value is not allowed.
    """
    known = OperatorOptions.__annotations__
    for name in options:
        if name not in known:
            guess = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {guess[0]!r}?" if guess else f" It takes {sorted(known)}."
            raise TypeError(f"{where}() has no argument {name!r}.{hint}")
    fields: dict[str, Any] = {}
    for name in ("uid", "name"):
        value = options.get(name)
        if value is not None and not isinstance(value, str):
            raise ConfigError(
                f"{where}: {name} must be a string, got {value!r}. To compute a column of that "
                f"name, pass the columns as a mapping: {where}({{{name!r}: ...}})."
            )
        fields[name] = value
    parallelism = options.get("parallelism")
    if parallelism is not None:
        parallelism = check_count("parallelism", parallelism, where)
    fields["parallelism"] = parallelism
    fields["resources"] = check_resources(
        where,
        num_cpus=options.get("num_cpus"),
        num_gpus=options.get("num_gpus"),
        memory=options.get("memory"),
        resources=options.get("resources"),
    )
    return fields
