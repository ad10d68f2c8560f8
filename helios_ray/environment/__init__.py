"""The environment: where a job is described, looked at and started.

Why it exists: the one name that every program begins with.

May import: its own modules.
"""

from helios_ray.environment.environment import Restore, StreamExecutionEnvironment

__all__ = ["Restore", "StreamExecutionEnvironment"]
