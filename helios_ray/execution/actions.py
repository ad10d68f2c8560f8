"""What a task body asks of its driver.

Why it exists: the body does no I/O. Under Ray these become actor calls and uploads; in the
simulator they become scheduled events.

May import: protocol, operators, identifiers, records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from helios_ray.identifiers import ChannelId
from helios_ray.operators.base import OperatorSnapshot, Request
from helios_ray.protocol.channels import Frame
from helios_ray.protocol.messages import ToCoordinator
from helios_ray.records import PreparedTransaction


@dataclass(frozen=True, slots=True)
class SendFrame:
    """Deliver a frame downstream, and confirm to the body when it has arrived."""

    frame: Frame


@dataclass(frozen=True, slots=True)
class SendCredit:
    """Tell the upstream end of a channel how much has been consumed in all."""

    epoch: int
    channel: ChannelId
    consumed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SealSnapshot:
    """Serialize, seal and store a snapshot off the processing thread, then acknowledge it.

    Args:
        state: state tables by operator uid; immutable.
        prepared: transactions that the checkpoint decides.
        watermark: event time announced downstream (µs).
        finished: whether the task had flushed its operators.
    """

    epoch: int
    checkpoint_id: int
    state: Mapping[str, OperatorSnapshot]
    prepared: tuple[PreparedTransaction, ...]
    watermark: int
    finished: bool


@dataclass(frozen=True, slots=True)
class Tell:
    """Deliver a message to the coordinator."""

    message: ToCoordinator


@dataclass(frozen=True, slots=True)
class StartRequest:
    """Await a request of an operator, and answer with ``TaskBody.respond``.

    Answers of an older epoch are ignored there; what is still awaited when the task is reset
    may be cancelled.
    """

    epoch: int
    operator: str
    request: Request


Action: TypeAlias = SendFrame | SendCredit | SealSnapshot | Tell | StartRequest
