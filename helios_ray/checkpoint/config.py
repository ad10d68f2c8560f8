"""How a job checkpoints: the settings, their defaults, and what is wrong with a bad one.

Why it exists: a setting that cannot work is refused where it is written, with the way out,
and one that works at a cost says what it costs. With no setting at all a job checkpoints
every 60 s to a local directory, encrypted under a key file made on first use.

May import: header, keys, key_file, storage, errors.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any

from helios_ray.checkpoint.header import DEFAULT_CHUNK_SIZE, MAX_CHUNK_SIZE, EncryptionAlgorithm
from helios_ray.checkpoint.key_file import FileKeyProvider
from helios_ray.checkpoint.keys import KeyProvider
from helios_ray.checkpoint.storage import CheckpointStorage
from helios_ray.errors import ConfigError

DEFAULT_DIRECTORY = ".helios/checkpoints"
DEFAULT_MIN_PAUSE = timedelta(seconds=10)
_MIN_PAUSE_SHARE = 6  # of the interval: the guide's 60 s and 10 s
_OFTEN = timedelta(seconds=10)
_SELDOM = timedelta(minutes=10)
_MIN_CHUNK_SIZE = 4 * 1024


class CheckpointConfigWarning(UserWarning):
    """A checkpoint setting works, and costs more than it seems to.

    Silence it, once read, with
    ``warnings.filterwarnings("ignore", category=CheckpointConfigWarning)``.
    """


@dataclass(frozen=True, kw_only=True)
class EncryptionConfig:
    """How state is protected before it leaves the process.

    Args:
        algorithm: AES-256-GCM, or NONE (still compressed, still checked for damage).
        key_rotation_days: age at which the provider adds a new key, in days. Older keys stay
            readable. Only providers that own their keys rotate (the key file does).
        compress_before_encrypt: zstd level 1 first. Encrypted bytes do not compress, so this
            is the only place it helps; off only pays for state that is compressed already.
        key_provider: who wraps the data keys; None is the default key file
            (``$HELIOS_KEY_FILE`` or ``~/.helios/keys.json``), made on first use.
        chunk_size: bytes of compressed state per authenticated chunk.
        accept_unencrypted: open objects that say they are not encrypted. For a job that
            turns encryption on while it still has to restore from before; else leave it off,
            or whoever can write to storage can feed the job state of their own.

    Raises:
        ConfigError: a value is out of range; names the field, the value and the way out.

    Example:
        >>> EncryptionConfig(key_rotation_days=7).algorithm
        <EncryptionAlgorithm.AES256GCM: 'AES-256-GCM'>
    """

    algorithm: EncryptionAlgorithm = EncryptionAlgorithm.AES256GCM
    key_rotation_days: int = 30
    compress_before_encrypt: bool = True
    key_provider: KeyProvider | None = None
    chunk_size: int = DEFAULT_CHUNK_SIZE
    accept_unencrypted: bool = False

    def __post_init__(self) -> None:
        _check_type(
            "EncryptionConfig.algorithm",
            self.algorithm,
            EncryptionAlgorithm,
            "Use EncryptionAlgorithm.AES256GCM.",
        )
        _check_int(
            "EncryptionConfig.key_rotation_days", self.key_rotation_days, 1, 36_500, "Use 30."
        )
        for name in ("compress_before_encrypt", "accept_unencrypted"):
            _check_type(f"EncryptionConfig.{name}", getattr(self, name), bool, "Use True or False.")
        _check_int(
            "EncryptionConfig.chunk_size",
            self.chunk_size,
            _MIN_CHUNK_SIZE,
            MAX_CHUNK_SIZE,
            "Use the default, 1 MiB.",
        )
        if self.key_provider is not None:
            _check_type(
                "EncryptionConfig.key_provider",
                self.key_provider,
                KeyProvider,
                "Use FileKeyProvider(path), EnvironmentKeyProvider(variable) or your own "
                "subclass of KeyProvider.",
            )

    @property
    def encrypted(self) -> bool:
        """Whether what is written is secret."""
        return self.algorithm is not EncryptionAlgorithm.NONE

    @property
    def keys(self) -> KeyProvider | None:
        """The provider in effect; None if nothing is encrypted and none was named."""
        if self.key_provider is None and self.encrypted:
            return FileKeyProvider()
        return self.key_provider

    @property
    def key_rotation(self) -> timedelta:
        """``key_rotation_days`` as a duration."""
        return timedelta(days=self.key_rotation_days)

    def prepared(self, now: datetime) -> EncryptionConfig:
        """Make the key if there is none, rotate it if it is due, and return the settings to
        send to other processes (those never make a key file of their own).

        Raises:
            KeyNotFoundError: there is no key and the provider cannot make one.
            ConfigError: the key file is exposed or cannot be written.
        """
        keys = self.keys
        if keys is None:
            return self
        if self.encrypted:
            keys = keys.prepare(now)
            keys.rotate_if_due(now, self.key_rotation)
        return replace(self, key_provider=keys)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a job checkpoints, and where to.

    Args:
        interval: from one checkpoint's start to the next. Any positive duration works,
            well under a second too; it is also how long exactly-once output stays unseen.
        min_pause: least time from one checkpoint's end to the next one's start. None, the
            default, is 10 s or a sixth of the interval, whichever is less, so that it
            never defeats a short interval; see :attr:`effective_min_pause`.
        max_concurrent: checkpoints that may be under way at once, at least 1.
        encryption: how state is protected.
        storage: where checkpoints go; by default the directory ``.helios/checkpoints`` under
            the current one, which only serves a cluster of one machine.
        retain_count: committed checkpoints kept, at least 1.
        timeout: a checkpoint that takes longer is given up.
        tolerable_failures: checkpoints in a row that may fail before the job does.

    Raises:
        ConfigError: a value is out of range; names the field, the value and the way out.

    Warns:
        CheckpointConfigWarning: a legal value that costs more than it seems to.

    Example:
        >>> config = CheckpointConfig(interval=timedelta(seconds=30))
        >>> config.effective_min_pause
        datetime.timedelta(seconds=5)
        >>> CheckpointConfig(interval=timedelta(seconds=-1))
        Traceback (most recent call last):
        ...
        helios_ray.errors.ConfigError: CheckpointConfig.interval must be a positive timedelta, \
got datetime.timedelta(days=-1, seconds=86399). Use for example timedelta(seconds=60).
    """

    interval: timedelta = timedelta(seconds=60)
    min_pause: timedelta | None = None
    max_concurrent: int = 1
    encryption: EncryptionConfig = field(default_factory=EncryptionConfig)
    storage: CheckpointStorage = field(
        default_factory=lambda: CheckpointStorage.local(DEFAULT_DIRECTORY)
    )
    retain_count: int = 3
    timeout: timedelta = timedelta(minutes=5)
    tolerable_failures: int = 0

    def __post_init__(self) -> None:
        name = "CheckpointConfig"
        _check_duration(f"{name}.interval", self.interval, "timedelta(seconds=60)")
        _check_duration(f"{name}.timeout", self.timeout, "timedelta(minutes=5)")
        if self.min_pause is not None:
            _check_duration(f"{name}.min_pause", self.min_pause, "timedelta(seconds=10)", zero=True)
        _check_int(f"{name}.max_concurrent", self.max_concurrent, 1, 1_000, "Use 1.")
        _check_int(f"{name}.retain_count", self.retain_count, 1, 1_000_000, "Use 3.")
        _check_int(
            f"{name}.tolerable_failures",
            self.tolerable_failures,
            0,
            1_000_000,
            "Use 0: the first failed checkpoint restarts the job.",
        )
        _check_type(
            f"{name}.encryption",
            self.encryption,
            EncryptionConfig,
            "Use EncryptionConfig(); to turn encryption off, "
            "EncryptionConfig(algorithm=EncryptionAlgorithm.NONE).",
        )
        _check_type(
            f"{name}.storage",
            self.storage,
            CheckpointStorage,
            "Use CheckpointStorage.local(path), CheckpointStorage.S3(bucket=..., prefix=...) or "
            "CheckpointStorage.fsspec(url).",
        )
        for advice in self.advice():
            warnings.warn(advice, CheckpointConfigWarning, stacklevel=3)

    def prepared(self) -> CheckpointConfig:
        """These settings with keys that other processes can use; see
        :meth:`EncryptionConfig.prepared`.
        """
        encryption = self.encryption.prepared(datetime.now(timezone.utc))
        with warnings.catch_warnings():
            # The user has heard the advice on these settings when they made them.
            warnings.simplefilter("ignore", CheckpointConfigWarning)
            return replace(self, encryption=encryption)

    @property
    def effective_min_pause(self) -> timedelta:
        """``min_pause``, or what stands for it when it is None."""
        if self.min_pause is not None:
            return self.min_pause
        return min(DEFAULT_MIN_PAUSE, self.interval / _MIN_PAUSE_SHARE)

    def advice(self) -> tuple[str, ...]:
        """What is legal here and costs more than it seems to; one sentence or two each."""
        said = []
        if self.interval < _OFTEN:
            said.append(
                f"CheckpointConfig.interval is {_seconds(self.interval)}: each checkpoint sends "
                "barriers through the whole job, snapshots and uploads what changed, and "
                "commits every sink. Under 10 s that costs throughput and storage requests; "
                "it pays when exactly-once output must be seen quickly."
            )
        if self.interval > _SELDOM:
            said.append(
                f"CheckpointConfig.interval is {_seconds(self.interval)}: after a failure up to "
                "that much input is processed again, and exactly-once output stays unseen as "
                "long. Over 10 min recovery is slow; 60 s suits most jobs."
            )
        if self.min_pause is not None and self.min_pause >= self.interval:
            said.append(
                f"CheckpointConfig.min_pause ({_seconds(self.min_pause)}) is not less than "
                f"interval ({_seconds(self.interval)}): checkpoints come at most every "
                f"{_seconds(self.min_pause)}, whatever the interval says. Lower min_pause, or "
                "leave it out."
            )
        return tuple(said)


def _seconds(duration: timedelta) -> str:
    return f"{duration.total_seconds():g} s"


def _check_type(field_name: str, value: Any, kind: type, way_out: str) -> None:
    if not isinstance(value, kind):
        raise ConfigError(f"{field_name} must be a {kind.__name__}, got {value!r}. {way_out}")


def _check_int(field_name: str, value: Any, low: int, high: int, way_out: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(
            f"{field_name} must be an integer from {low} to {high}, got {value!r}. {way_out}"
        )


def _check_duration(field_name: str, value: Any, example: str, *, zero: bool = False) -> None:
    least = timedelta(0) if zero else timedelta(microseconds=1)
    if not isinstance(value, timedelta) or value < least:
        kind = "timedelta of zero or more" if zero else "positive timedelta"
        raise ConfigError(
            f"{field_name} must be a {kind}, got {value!r}. Use for example {example}."
        )
