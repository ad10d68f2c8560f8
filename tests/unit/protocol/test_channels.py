"""Channels: duplicates, gaps, credit, repeats."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_ray.errors import ChannelGapError
from helios_ray.identifiers import ChannelId, TaskId
from helios_ray.protocol.channels import InboundChannel, OutboundChannel, Verdict

CHANNEL = ChannelId(0, TaskId("up", 0), TaskId("down", 1))


def test_frames_are_taken_once_and_in_order() -> None:
    channel = InboundChannel(CHANNEL)
    assert channel.accept(0) is Verdict.ACCEPT
    assert channel.accept(1) is Verdict.ACCEPT
    assert channel.accept(0) is Verdict.DUPLICATE
    assert channel.accept(1) is Verdict.DUPLICATE


def test_a_gap_is_an_error_that_names_channel_and_frames() -> None:
    channel = InboundChannel(CHANNEL)
    channel.accept(0)
    with pytest.raises(ChannelGapError, match=r"up\[0\]->down\[1\]#0: expected frame 1, got 3"):
        channel.accept(3)
    assert channel.accept(1) is Verdict.ACCEPT


def test_credit_is_told_once_enough_has_been_consumed() -> None:
    channel = InboundChannel(CHANNEL)
    channel.consume(60)
    assert channel.credit_due(100) is None
    channel.consume(60)
    assert channel.credit_due(100) == 120
    assert channel.credit_due(100) is None


def test_a_sender_stops_at_its_window_and_goes_on_with_credit() -> None:
    channel = OutboundChannel(CHANNEL, epoch=3, window=100)
    assert channel.send((), 250, now=0.0).sequence == 0
    assert not channel.has_credit
    channel.grant(150)
    assert not channel.has_credit
    channel.grant(151)
    assert channel.has_credit
    channel.grant(10)  # late news
    assert channel.has_credit


def test_unconfirmed_frames_are_repeated_from_the_first_overdue_one_on() -> None:
    channel = OutboundChannel(CHANNEL, epoch=3, window=1000)
    for now in (0.0, 1.0, 2.0):
        channel.send((), 1, now)
    channel.confirm(0)
    assert channel.next_repeat(5.0) == 6.0
    assert channel.repeats(5.9, 5.0) == []
    assert [f.sequence for f in channel.repeats(6.0, 5.0)] == [1, 2]
    assert channel.repeats(6.1, 5.0) == []
    channel.confirm(1)
    channel.confirm(2)
    assert channel.next_repeat(5.0) is None


@given(st.lists(st.sampled_from(["send", "deliver", "lose", "repeat", "confirm"]), max_size=60))
def test_with_repeats_every_frame_arrives_once_in_order_or_a_gap_is_raised(
    happenings: list[str],
) -> None:
    sender = OutboundChannel(CHANNEL, epoch=1, window=10**9)
    receiver = InboundChannel(CHANNEL)
    wire: list[int] = []
    arrived: list[int] = []
    now = 0.0
    for what in happenings:
        now += 1.0
        if what == "send":
            wire.append(sender.send((), 1, now).sequence)
        elif what == "repeat":
            wire += [f.sequence for f in sender.repeats(now, 0.5)]
        elif what == "confirm" and arrived:
            sender.confirm(arrived[-1])
        elif wire and what == "lose":
            wire.pop(0)
        elif wire and what == "deliver":
            sequence = wire.pop(0)
            try:
                verdict = receiver.accept(sequence)
            except ChannelGapError:
                assert sequence > len(arrived)
            else:
                assert (verdict is Verdict.ACCEPT) == (sequence == len(arrived))
                if verdict is Verdict.ACCEPT:
                    arrived.append(sequence)
    assert arrived == list(range(len(arrived)))
