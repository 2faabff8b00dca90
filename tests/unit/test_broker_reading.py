"""Frames as the library is given them, and the words with which a broker ends a connection."""

import asyncio

import pytest
from pamqp import frame as frames
from pamqp.commands import Basic, Channel, Connection
from pamqp.header import ContentHeader

from services.broker.calls import BrokerEnded
from services.broker.reading import FrameReader


async def read(*sent):
    """The frames of a stream, read in the library's steps; and the reader."""
    stream = asyncio.StreamReader()
    for one in sent:
        stream.feed_data(one)
    stream.feed_eof()
    reader = FrameReader(stream)
    got = []
    while not reader.at_eof():
        head = await reader.readexactly(1) + await reader.readexactly(6)
        got.append(frames.unmarshal(head + await reader.readexactly(frames.frame_parts(head)[2] + 1))[2])
    return got, reader


def properties(**some):
    return frames.marshal(ContentHeader(0, 5, Basic.Properties(**some)), 1)


def other(sent, old, new):
    """The frame with other bytes of the same number."""
    assert len(old) == len(new)
    assert sent.count(old) == 1
    return sent.replace(old, new)


@pytest.mark.parametrize(
    "sent",
    [
        other(properties(message_type="abc"), b"abc", b"a\xe9c"),
        other(properties(delivery_mode=2), b"\x10\x00\x02", b"\x10\x00\x07"),
        other(properties(headers={"k": True}), b"\x01kt\x01", b"\x01kz\x01"),
        other(properties(expiration="100"), b"100", b"1e!"),
    ],
)
async def test_properties_that_cannot_be_used_are_left_out_and_the_next_frame_is_whole(sent):
    (mended, deliver), _ = await read(sent, frames.marshal(Basic.Deliver("tag", 1, False, "x", "k"), 1))

    assert mended.body_size == 5
    assert [value for _, value in mended.properties if value] == []
    assert deliver.routing_key == "k"


async def test_properties_that_can_be_used_are_kept():
    (header,), _ = await read(properties(message_type="probe", delivery_mode=2, headers={"x-delivery-count": 3}))

    assert (header.properties.message_type, header.properties.headers) == ("probe", {"x-delivery-count": 3})


async def test_a_delivery_keeps_its_tag_though_its_names_cannot_be_read():
    sent = frames.marshal(Basic.Deliver("tag", 0xFFFFFF, True, "abc", "k" * 200), 1)
    (deliver,), _ = await read(other(other(sent, b"abc", b"a\xe9c"), b"k" * 200, b"\xff" * 200))

    assert (deliver.delivery_tag, deliver.redelivered, deliver.consumer_tag) == (0xFFFFFF, True, "tag")
    assert (deliver.exchange, deliver.routing_key) == ("a?c", "?" * 200)


@pytest.mark.parametrize(
    ("text", "said"), [(b"vhost nowhere not found", "vhost nowhere not found"), (b"vhost \xc3", "vhost ?")]
)
async def test_the_words_of_an_end_are_kept_also_where_they_are_cut_within_a_sign(text, said):
    sent = frames.marshal(Connection.Close(530, "x" * len(text), 10, 40), 0)
    _, reader = await read(other(sent, b"x" * len(text), text))

    assert reader.end == (530, said)


async def test_the_words_of_a_channels_end_that_are_cut_within_a_sign_end_no_connection():
    sent = frames.marshal(Channel.Close(403, "user xx", 60, 40), 1)
    (close,), reader = await read(other(sent, b"xx", b"\xc3\xff"))

    assert (close.reply_code, close.reply_text, reader.end) == (403, "user ??", None)


REFUSED = "NOT_ALLOWED - access to vhost 'a' refused for user 'b'"


@pytest.mark.parametrize(
    ("code", "said", "is_refusal"),
    [
        (403, "ACCESS_REFUSED - Login was refused", True),
        (530, "NOT_ALLOWED - vhost limit (0) is reached not found", True),
        (530, REFUSED, True),
        (530, "NOT_ALLOWED - access to vhost 'o'a' refused for user 'o'neil'", True),
        (530, f"{REFUSED}: connection limit (0) is reached", False),
        (530, f"{REFUSED}: vhost 'a' is not one for 'b'", False),
        (530, f"{REFUSED}: connection limit cannot be queried, timeout", False),
        (530, "NOT_ALLOWED - connection refused for user 'b': user connection limit (0) is reached", False),
        (530, "NOT_ALLOWED - connection refused: node connection limit (1) is reached", False),
        (541, "INTERNAL_ERROR - access to vhost 'a' refused for user 'b': vhost 'a' is down", False),
        (320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'", False),
    ],
)
def test_only_a_vhost_that_is_not_there_or_not_allowed_is_a_refusal(code, said, is_refusal):
    assert BrokerEnded(code, said).is_refusal is is_refusal
