"""Every exception helios_ray raises, in one tree.

Why it exists: a user catches one name, a maintainer finds every failure in one
place, and each message says four things: what was expected, what came, where
(operator uid, row, file), and the way out.

May import: nothing.

    HeliosError
    ├── ConfigError                      a setting is wrong; raised when it is constructed
    ├── PlanError                        the dataflow is wrong; raised when it is built
    │   ├── DuplicateUidError            two operators carry one uid
    │   ├── CycleError                   the dataflow loops back on itself
    │   └── MissingColumnError           a named column is not in the schema
    ├── DataError                        a record cannot be processed
    │   ├── UserFunctionError            a user's function raised
    │   ├── SchemaChangedError           a stream changed its columns or types
    │   └── CorruptInputError            a source could not decode its input
    ├── ConnectorError                   an outside system refused or is not there
    │   ├── SourceUnavailableError
    │   ├── SinkUnavailableError
    │   ├── RetryableCommitError         try this commit again
    │   └── FatalCommitError             this commit can never succeed: data would be lost
    ├── CheckpointError                  a checkpoint cannot be written or read
    │   ├── StorageError                 storage answered with an error
    │   │   ├── StorageUnreachableError  nothing answered at that address
    │   │   ├── StorageNotFoundError     no such bucket, directory or object
    │   │   └── StorageUnknownError      no answer: the call may or may not have happened
    │   ├── KeyNotFoundError             the encryption key named by an object is missing
    │   ├── WrongKeyError                the key is there and does not fit
    │   ├── TamperedObjectError          authentication failed: changed, swapped or replayed
    │   │   └── TruncatedObjectError     an object ends before its last chunk
    │   ├── UnknownFormatError           written by a version this one cannot read
    │   ├── CheckpointTimeoutError       a checkpoint outlasted CheckpointConfig.timeout
    │   ├── CheckpointNotFoundError      nothing to restore from
    │   └── StateMismatchError           state belongs to operators the job does not have
    └── JobError                         a job ended badly
        ├── JobFailedError               restarts exhausted, or a fatal failure
        ├── JobCancelledError
        ├── FencedError                  a newer attempt of the job owns the storage
        └── ChannelGapError              a frame is missing between two tasks
"""

from __future__ import annotations


class HeliosError(Exception):
    """Root of everything this package raises on purpose.

    Example:
        >>> issubclass(TamperedObjectError, HeliosError)
        True
    """


class ConfigError(HeliosError, ValueError):
    """A setting is wrong. The message names the field, what came, what is allowed, the way out."""


class PlanError(HeliosError):
    """The dataflow cannot run as described."""


class DuplicateUidError(PlanError):
    """Two operators carry the same ``uid``, so their state could not be told apart."""


class CycleError(PlanError):
    """The dataflow loops back on itself; barriers could never align."""


class MissingColumnError(PlanError):
    """A named column is not in the schema; the message offers the nearest match."""


class DataError(HeliosError):
    """A record cannot be processed."""


class UserFunctionError(DataError):
    """A user's function raised. Names the operator uid, the row, and the source position."""


class SchemaChangedError(DataError):
    """A stream changed its columns or types midway."""


class CorruptInputError(DataError):
    """A source could not decode its input. Names the file and the position."""


class ConnectorError(HeliosError):
    """An outside system refused, or is not there."""


class SourceUnavailableError(ConnectorError):
    """A source cannot be reached or does not exist."""


class SinkUnavailableError(ConnectorError):
    """A sink cannot be reached or refuses to be written to."""


class RetryableCommitError(ConnectorError):
    """The commit did not happen, or nobody knows; trying again is safe and may succeed."""


class FatalCommitError(ConnectorError):
    """The commit can never succeed. The job fails loudly: going on would lose data."""


class CheckpointError(HeliosError):
    """A checkpoint cannot be written or read."""


class StorageError(CheckpointError):
    """Storage answered with an error."""


class StorageUnreachableError(StorageError):
    """Nothing answered at the storage address."""


class StorageNotFoundError(StorageError):
    """No such bucket, directory or object."""


class StorageUnknownError(StorageError):
    """No answer came: the call may or may not have taken effect. Neither delete nor assume."""


class KeyNotFoundError(CheckpointError):
    """The key provider has no key of the id that an object names."""


class WrongKeyError(CheckpointError):
    """The key provider has a key of that id, and it does not open the object."""


class TamperedObjectError(CheckpointError):
    """Authentication failed: the object was changed, swapped, reordered or replayed."""


class TruncatedObjectError(TamperedObjectError):
    """The object ends before its last chunk."""


class UnknownFormatError(CheckpointError):
    """Written by a format version that this release cannot read."""


class CheckpointTimeoutError(CheckpointError):
    """A checkpoint outlasted ``CheckpointConfig.timeout``."""


class CheckpointNotFoundError(CheckpointError):
    """There is nothing to restore from at that place."""


class StateMismatchError(CheckpointError):
    """A checkpoint holds state of operators that the job does not have."""


class JobError(HeliosError):
    """A job ended badly."""


class JobFailedError(JobError):
    """The job failed and may not restart: the message carries the first cause."""


class JobCancelledError(JobError):
    """The job was cancelled."""


class FencedError(JobError):
    """A newer attempt owns the job; this one may neither write nor commit."""


class ChannelGapError(JobError):
    """A frame is missing on a channel: the sender's and the receiver's counts disagree."""
