"""Keys that wrap data keys: envelope encryption, without saying where the keys live.

Why it exists: every sealed object is encrypted under a fresh data key, and only the wrapped
data key is stored with it. A :class:`KeyProvider` wraps and unwraps; the sealing code never
sees a master key. A cloud key service fits the same four methods: its ``wrap`` is the
service's Encrypt call with ``context`` as encryption context, its ``unwrap`` is Decrypt.

Promises: a provider pickles as its specification (a path, a variable's name), never with key
material, except the in-memory one; no ``repr`` shows key material; a missing key and a wrong
key are two different errors.

May import: errors.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from helios_ray.errors import ConfigError, KeyNotFoundError, TamperedObjectError, WrongKeyError

KEY_BYTES = 32
"""Master keys and data keys are 256 bits."""

_CHECK_BYTES = 8
_NONCE_BYTES = 12
_WRAP_LABEL = b"helios_ray key wrap 1\x00"
_KEY_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$")


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key as it is stored: unreadable without the master key ``key_id``."""

    key_id: str
    wrapped: bytes = field(repr=False)


class KeyProvider(ABC):
    """Wraps and unwraps data keys. Instances are shared between threads and are pickled.

    Times are passed in, timezone-aware, so that rotation can be tested without waiting.
    """

    @abstractmethod
    def current_key_id(self, now: datetime) -> str:
        """The id of the key that ``wrap`` uses at ``now``.

        Raises:
            KeyNotFoundError: there is no key at all.
        """

    @abstractmethod
    def wrap(self, data_key: bytes, *, context: bytes, now: datetime) -> WrappedKey:
        """Encrypt ``data_key`` under the current key.

        Args:
            data_key: 32 bytes.
            context: authenticated with it; ``unwrap`` must be given the same.
            now: decides which key is current.

        Raises:
            KeyNotFoundError: there is no key at all.
        """

    @abstractmethod
    def unwrap(self, wrapped: WrappedKey, *, context: bytes) -> bytes:
        """Return the data key.

        Raises:
            KeyNotFoundError: there is no key of the id that ``wrapped`` names.
            WrongKeyError: there is one, and it is not the key that wrapped this.
            TamperedObjectError: it is the right key, and the wrapped bytes or the context
                were changed.
        """

    @abstractmethod
    def key_ids(self) -> tuple[str, ...]:
        """Every key that ``unwrap`` can use, oldest first."""

    def rotate_if_due(self, now: datetime, max_age: timedelta) -> str:
        """Add a new current key if the current one is older than ``max_age``; return its id.

        Older keys stay readable. Providers whose keys are rotated elsewhere (an environment
        variable, a key service) change nothing.
        """
        return self.current_key_id(now)

    def prepare(self, now: datetime) -> KeyProvider:
        """Make sure there is a key, and return the provider to send to other processes.

        Called once, by the process that starts a job. What it returns never makes a key
        file by itself: a node that lacks the keys then says so, where it would otherwise
        encrypt under a key that no other node has.
        """
        self.current_key_id(now)
        return self


class LocalKeyProvider(KeyProvider):
    """A provider that holds the keys in this process and wraps with AES-256-GCM.

    A wrapped key is ``check (8) | nonce (12) | ciphertext (32) | tag (16)``. The check value is
    a MAC of nothing but a label: it tells a wrong key from a damaged object, and commits
    the wrapping to one key.
    """

    @abstractmethod
    def _key(self, key_id: str) -> bytes | None:
        """The key of that id, or None."""

    @abstractmethod
    def _where(self) -> str:
        """Where the keys live, for error messages; no key material."""

    def wrap(self, data_key: bytes, *, context: bytes, now: datetime) -> WrappedKey:
        key_id = self.current_key_id(now)
        key = self._require(key_id)
        nonce = os.urandom(_NONCE_BYTES)
        sealed = AESGCM(key).encrypt(nonce, data_key, _WRAP_LABEL + context)
        return WrappedKey(key_id, _check_value(key) + nonce + sealed)

    def unwrap(self, wrapped: WrappedKey, *, context: bytes) -> bytes:
        key = self._require(wrapped.key_id)
        blob = wrapped.wrapped
        check, nonce = blob[:_CHECK_BYTES], blob[_CHECK_BYTES : _CHECK_BYTES + _NONCE_BYTES]
        if not hmac.compare_digest(check, _check_value(key)):
            raise WrongKeyError(
                f"The key {wrapped.key_id!r} in {self._where()} is not the key this object was "
                "encrypted with, though it has the same id. Restore the original key of that "
                "id (the keys are never part of a checkpoint), or read from the environment "
                "that wrote the checkpoint."
            )
        try:
            return AESGCM(key).decrypt(
                nonce, blob[_CHECK_BYTES + _NONCE_BYTES :], _WRAP_LABEL + context
            )
        except (InvalidTag, ValueError) as error:
            raise TamperedObjectError(
                f"The data key wrapped under {wrapped.key_id!r} does not authenticate: the "
                "object was changed after it was written, or belongs to another job. Restore "
                "it from a copy, or restore from another checkpoint."
            ) from error

    def _require(self, key_id: str) -> bytes:
        key = self._key(key_id)
        if key is None:
            have = ", ".join(self.key_ids()) or "none"
            raise KeyNotFoundError(
                f"The encryption key {key_id!r} is not in {self._where()} (keys there: {have}). "
                "Put the key that wrote this checkpoint there, or name the provider that has it "
                "in EncryptionConfig(key_provider=...)."
            )
        return key


class InMemoryKeyProvider(LocalKeyProvider):
    """Keys in memory, for tests. Pickles **with** its keys; they are lost with the process.

    Args:
        keys: 32-byte keys by id, oldest first; without, one random key is made.

    Raises:
        ConfigError: a key is not 32 bytes or an id is malformed.

    Example:
        >>> from datetime import datetime, timezone
        >>> now = datetime(2026, 1, 1, tzinfo=timezone.utc)
        >>> keys = InMemoryKeyProvider()
        >>> wrapped = keys.wrap(b"k" * 32, context=b"job", now=now)
        >>> keys.unwrap(wrapped, context=b"job") == b"k" * 32
        True
    """

    def __init__(self, keys: Mapping[str, bytes] | None = None) -> None:
        self._keys = dict(keys) if keys is not None else {"memory-1": os.urandom(KEY_BYTES)}
        for key_id, key in self._keys.items():
            check_key(key_id, key, "InMemoryKeyProvider(keys=...)")
        self._since: datetime | None = None

    def current_key_id(self, now: datetime) -> str:
        if not self._keys:
            raise KeyNotFoundError(
                "InMemoryKeyProvider holds no key. Give it one: InMemoryKeyProvider()."
            )
        return next(reversed(self._keys))

    def key_ids(self) -> tuple[str, ...]:
        return tuple(self._keys)

    def rotate(self) -> str:
        """Add a new current key and return its id."""
        key_id = f"memory-{len(self._keys) + 1}"
        self._keys[key_id] = os.urandom(KEY_BYTES)
        return key_id

    def rotate_if_due(self, now: datetime, max_age: timedelta) -> str:
        if self._since is None:
            self._since = now
        elif now - self._since >= max_age:
            self._since = now
            return self.rotate()
        return self.current_key_id(now)

    def _key(self, key_id: str) -> bytes | None:
        return self._keys.get(key_id)

    def _where(self) -> str:
        return "this InMemoryKeyProvider"

    def __repr__(self) -> str:
        return f"InMemoryKeyProvider(key_ids={list(self._keys)}, keys=***)"


class EnvironmentKeyProvider(LocalKeyProvider):
    """Keys from an environment variable, read when they are needed.

    The variable holds one or more keys, separated by commas or white space, **the current
    one first**: ``id:base64`` or just ``base64`` (its id then follows from the key). To
    rotate, put a new key in front and keep the old ones while checkpoints need them.

    Every process of the job needs the variable; under Ray that is
    ``ray.init(runtime_env={"env_vars": {...}})`` or the nodes' own environment.

    Args:
        variable: name of the variable.

    Example:
        >>> import base64, os
        >>> from datetime import datetime, timezone
        >>> os.environ["DOCTEST_KEYS"] = "new:" + base64.b64encode(b"n" * 32).decode()
        >>> EnvironmentKeyProvider("DOCTEST_KEYS").current_key_id(datetime.now(timezone.utc))
        'new'
    """

    def __init__(self, variable: str = "HELIOS_KEYS") -> None:
        if not variable:
            raise ConfigError(
                "EnvironmentKeyProvider.variable must be the name of an environment variable, "
                "got ''. Use for example EnvironmentKeyProvider('HELIOS_KEYS')."
            )
        self.variable = variable
        self._parsed: tuple[str, dict[str, bytes]] | None = None

    def current_key_id(self, now: datetime) -> str:
        return next(iter(self._ring()))

    def key_ids(self) -> tuple[str, ...]:
        return tuple(reversed(self._ring()))

    def _ring(self) -> dict[str, bytes]:
        text = os.environ.get(self.variable, "")
        parsed = self._parsed
        if parsed is not None and parsed[0] == text:
            return parsed[1]
        ring: dict[str, bytes] = {}
        for number, entry in enumerate(re.split(r"[,\s]+", text.strip()), start=1):
            if not entry:
                continue
            where = f"entry {number} of the environment variable {self.variable}"
            key_id, separator, encoded = entry.rpartition(":")
            key = decode_key(encoded, where)
            if not separator:
                key_id = "env-" + hashlib.sha256(b"helios_ray key id\x00" + key).hexdigest()[:12]
            check_key(key_id, key, where)
            ring.setdefault(key_id, key)
        if not ring:
            raise KeyNotFoundError(
                f"The environment variable {self.variable} is not set, or empty, in this "
                "process. Set it to 'id:base64key' for every process of the job (under Ray: "
                'runtime_env={"env_vars": {...}}); a key is 32 random bytes, for example '
                "from `openssl rand -base64 32`."
            )
        self._parsed = (text, ring)
        return ring

    def _key(self, key_id: str) -> bytes | None:
        return self._ring().get(key_id)

    def _where(self) -> str:
        return f"the environment variable {self.variable}"

    def __getstate__(self) -> dict[str, object]:
        return {"variable": self.variable, "_parsed": None}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EnvironmentKeyProvider) and other.variable == self.variable

    def __hash__(self) -> int:
        return hash(self.variable)

    def __repr__(self) -> str:
        return f"EnvironmentKeyProvider({self.variable!r})"


def decode_key(encoded: str, where: str) -> bytes:
    """Read a key from base64 (standard or URL-safe alphabet); never quotes it in an error."""
    try:
        return base64.b64decode(encoded.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(
            f"{where} must be base64, optionally after 'id:', and cannot be decoded (its value "
            "is not shown). Make a key with `openssl rand -base64 32`."
        ) from None


def check_key(key_id: str, key: bytes, where: str) -> None:
    """Refuse a malformed id or a key of another size than 256 bits."""
    if not _KEY_ID.match(key_id):
        raise ConfigError(
            f"{where}: a key id must be 1-64 letters, digits, '_', '.' or '-', got {key_id!r}. "
            "Rename it."
        )
    if len(key) != KEY_BYTES:
        raise ConfigError(
            f"{where}: key {key_id!r} must be {KEY_BYTES} bytes (256 bits), got {len(key)}. "
            "Make one with `openssl rand -base64 32`."
        )


def _check_value(key: bytes) -> bytes:
    return hmac.digest(key, b"helios_ray key check 1", "sha256")[:_CHECK_BYTES]
