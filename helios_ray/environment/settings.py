"""What all operators of a job share, and how it is set.

Why it exists: the ``with_`` methods are plain configuration, checked where it is given.

May import: plan, state.key_groups, checkpoint config, protocol.restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypeVar

from helios_ray.checkpoint.config import CheckpointConfig
from helios_ray.errors import ConfigError
from helios_ray.plan.compile import PlanSettings
from helios_ray.plan.options import check_count, check_resources
from helios_ray.plan.physical import DEFAULT_MAX_PARALLELISM, Resources
from helios_ray.protocol.restart import ExponentialBackoff, RestartStrategy
from helios_ray.state.key_groups import check_parallelism

Self = TypeVar("Self", bound="Settings")


class Settings:
    """The ``with_`` methods of an environment. Each changes it and returns it.

    Example:
        >>> from helios_ray import FixedDelay, StreamExecutionEnvironment
        >>> (StreamExecutionEnvironment()
        ...     .with_parallelism(2)
        ...     .with_restart_strategy(FixedDelay(attempts=3, delay=timedelta(seconds=1)))
        ...     .build())
        StreamExecutionEnvironment(0 operators, parallelism 2)
    """

    def __init__(self) -> None:
        self._checkpoints: CheckpointConfig | None = None
        self._restart: RestartStrategy = ExponentialBackoff()
        self._parallelism = 1
        self._max_parallelism = DEFAULT_MAX_PARALLELISM
        self._resources = Resources()
        self._chaining = True
        self._local_aggregation = True
        self._buffer_timeout: timedelta | None = None
        self._heartbeat_timeout: timedelta | None = None
        self._stall_timeout: timedelta | None = None
        self._ray_options: dict[str, Any] = {}

    def with_checkpoint_config(self: Self, config: CheckpointConfig) -> Self:
        """Set when and where the job checkpoints.

        Raises:
            ConfigError: ``config`` is no CheckpointConfig.
        """
        _check_type("with_checkpoint_config", config, CheckpointConfig, "CheckpointConfig(...)")
        self._checkpoints = config
        return self

    def with_parallelism(self: Self, parallelism: int) -> Self:
        """Set the subtasks of operators that do not say; 1 unless set.

        Raises:
            ConfigError: it is not a whole number from 1.
        """
        self._parallelism = check_count("parallelism", parallelism, "with_parallelism")
        return self

    def with_max_parallelism(self: Self, max_parallelism: int) -> Self:
        """Set the number of key groups, fixed for the life of the job's state; 128 unless set.

        Raises:
            ConfigError: it is not a whole number from 1 to 32768.
        """
        count = check_count("max_parallelism", max_parallelism, "with_max_parallelism")
        check_parallelism(1, count)
        self._max_parallelism = count
        return self

    def with_restart_strategy(self: Self, strategy: RestartStrategy) -> Self:
        """Set how the job answers failures; ``ExponentialBackoff()`` unless set.

        Raises:
            ConfigError: ``strategy`` is no RestartStrategy.
        """
        _check_type("with_restart_strategy", strategy, RestartStrategy, "FixedDelay(attempts=3)")
        self._restart = strategy
        return self

    def with_buffer_timeout(self: Self, timeout: timedelta) -> Self:
        """Set the longest that a row waits in an output buffer for company. Zero: not at all.

        Raises:
            ConfigError: it is not a timedelta, or is negative.
        """
        _check_type("with_buffer_timeout", timeout, timedelta, "timedelta(milliseconds=10)")
        if timeout < timedelta(0):
            raise ConfigError(
                f"with_buffer_timeout must be given a timedelta from zero, got {timeout!r}. Pass "
                f"timedelta(0) to send every batch at once."
            )
        self._buffer_timeout = timeout
        return self

    def with_failure_detection(
        self: Self,
        *,
        heartbeat_timeout: timedelta | None = None,
        stall_timeout: timedelta | None = None,
    ) -> Self:
        """Set when a task that has not died counts as failed. Dead ones are noticed at once.

        Args:
            heartbeat_timeout: silence after which a process counts as lost (frozen machine,
                lost network); 10 s unless set. None leaves it as it is.
            stall_timeout: time inside one call of a user function or connector after which
                the task counts as hung; 5 min unless set. Longer than the longest call.

        Raises:
            ConfigError: one is not a timedelta, or is not longer than zero.
        """
        for name, value in (
            ("heartbeat_timeout", heartbeat_timeout),
            ("stall_timeout", stall_timeout),
        ):
            if value is None:
                continue
            where = f"with_failure_detection({name})"
            _check_type(where, value, timedelta, "timedelta(seconds=10)")
            if value <= timedelta(0):
                raise ConfigError(
                    f"{where} must be longer than zero, got {value!r}. Use timedelta(seconds=10)."
                )
            setattr(self, f"_{name}", value)
        return self

    def with_default_resources(
        self: Self,
        *,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        memory: int | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> Self:
        """Set what each subtask asks of Ray where its operator does not say.

        Raises:
            ConfigError: an amount is negative.
        """
        asked = check_resources("with_default_resources", num_cpus, num_gpus, memory, resources)
        self._resources = asked or Resources()
        return self

    def with_ray_options(self: Self, **options: Any) -> Self:
        """Set arguments for ``ray.init`` (``address``, ``runtime_env``, ``num_cpus``, …).

        They count only where Ray is not initialized yet when the job starts; an initialized
        Ray is joined as it is.
        """
        self._ray_options.update(options)
        return self

    def disable_operator_chaining(self: Self) -> Self:
        """Give every operator actors of its own. For finding the slow one; costs throughput."""
        self._chaining = False
        return self

    def disable_local_aggregation(self: Self) -> Self:
        """Never aggregate before a shuffle. Better where nearly every row has its own key."""
        self._local_aggregation = False
        return self

    def build(self: Self) -> Self:
        """Check that the settings fit together. Optional: starting the job checks as well.

        Raises:
            ConfigError: parallelism exceeds max_parallelism.
        """
        check_parallelism(self._parallelism, self._max_parallelism)
        return self

    def _plan_settings(self) -> PlanSettings:
        return PlanSettings(
            parallelism=self._parallelism,
            max_parallelism=self._max_parallelism,
            resources=self._resources,
            chaining=self._chaining,
            local_aggregation=self._local_aggregation,
        )


def _check_type(method: str, value: object, kind: type, example: str) -> None:
    if not isinstance(value, kind):
        raise ConfigError(
            f"{method} must be given a {kind.__name__}, got {value!r}. Pass for example {example}."
        )
