"""Checkpoints: settings, storage, keys, sealed state, and reading it all offline.

What a user needs is exported here; the rest of the room serves the runtime.
"""

from helios_ray.checkpoint.config import (
    CheckpointConfig,
    CheckpointConfigWarning,
    EncryptionConfig,
)
from helios_ray.checkpoint.key_file import FileKeyProvider
from helios_ray.checkpoint.keys import (
    EnvironmentKeyProvider,
    InMemoryKeyProvider,
    KeyProvider,
    WrappedKey,
)
from helios_ray.checkpoint.manifest import CheckpointSummary
from helios_ray.checkpoint.reader import list_checkpoints, read_state
from helios_ray.checkpoint.sealed import EncryptionAlgorithm
from helios_ray.checkpoint.storage import CheckpointStorage, ObjectStore

__all__ = [
    "CheckpointConfig",
    "CheckpointConfigWarning",
    "CheckpointStorage",
    "CheckpointSummary",
    "EncryptionAlgorithm",
    "EncryptionConfig",
    "EnvironmentKeyProvider",
    "FileKeyProvider",
    "InMemoryKeyProvider",
    "KeyProvider",
    "ObjectStore",
    "WrappedKey",
    "list_checkpoints",
    "read_state",
]
