"""A reader for the AMQP library: it hides what the library cannot read, and keeps the words of an end.

A message of somebody else may have properties that AMQP allows and the library does not know: a timestamp that is no
time, names that are not in UTF-8, a type of field that is new. The library would end the connection, be sent the same
message on the next one, and never get past it. Without its properties a message is settled, or put among the dead, like
any other.
"""

import asyncio

from aio_pika import DeliveryMode
from pamqp import frame as frames
from pamqp.commands import Basic, Channel, Connection
from pamqp.constants import FRAME_HEADER, FRAME_METHOD
from pamqp.header import ContentHeader

from services.logs import get_logger

log = get_logger(__name__)

HEAD_BYTES = 7
"""A frame's type, channel and size; the library reads these first, in two steps, and then the rest as a whole."""
ID_BYTES = 4
"""A method's class and number."""
FLAGS_AT = HEAD_BYTES + 12
"""Where a content header tells which properties follow; class, weight and the body's size come before."""
FLAGS_BYTES = 2
DELIVERY_TAG_BYTES = 9
"""The tag, and whether it was delivered before."""
CODE_BYTES = 2
CLOSES = (Channel.Close.index, Connection.Close.index)


class FrameReader:
    """A stream of frames; each is handed on as the library can read it."""

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._stream = stream
        self._head = b""
        self.end: tuple[int, str] | None = None
        """The code and the words with which the other end has ended the connection."""

    def at_eof(self) -> bool:
        """As the stream's."""
        return self._stream.at_eof()

    async def read(self) -> bytes:
        """As the stream's."""
        return await self._stream.read()

    async def readexactly(self, count: int) -> bytes:
        """As the stream's, but for what the library could not read."""
        data = await self._stream.readexactly(count)
        if len(self._head) < HEAD_BYTES:
            self._head += data
            return data
        head, self._head = self._head, b""
        return self._readable(head + data)[HEAD_BYTES:]

    def _readable(self, frame: bytes) -> bytes:
        kind = frame[0]
        method = int.from_bytes(frame[HEAD_BYTES : HEAD_BYTES + ID_BYTES]) if kind == FRAME_METHOD else None
        if kind != FRAME_HEADER and method not in (Basic.Deliver.index, *CLOSES):
            return frame
        try:
            _, _, read = frames.unmarshal(frame)
            if isinstance(read, ContentHeader):
                _refuse_values(read.properties)
        except Exception as error:  # of many kinds, some of which the library itself does not expect
            log.warning("frame_unreadable", cause=str(error) or type(error).__name__)
            if kind == FRAME_HEADER:
                return frame[:FLAGS_AT] + bytes(FLAGS_BYTES) + frame[FLAGS_AT + FLAGS_BYTES :]
            frame = _in_ascii(frame, is_close=method in CLOSES)
            _, _, read = frames.unmarshal(frame)
        if isinstance(read, Connection.Close):
            self.end = read.reply_code or 0, read.reply_text or ""
        return frame


def _refuse_values(properties: Basic.Properties) -> None:
    """Raise `ValueError` for what the library reads, and then fails at when it makes a message of it."""
    DeliveryMode(properties.delivery_mode or DeliveryMode.NOT_PERSISTENT)
    float(properties.expiration or 0)


def _in_ascii(frame: bytes, *, is_close: bool) -> bytes:
    """A method with `?` for each byte of its strings that may not be UTF-8.

    These are the exchange's name and the routing key of a delivery, and the words of a close, which RabbitMQ cuts off
    after 255 bytes, perhaps within a sign.
    """
    plain = bytearray(frame)
    at = HEAD_BYTES + ID_BYTES
    at += CODE_BYTES if is_close else 1 + plain[at] + DELIVERY_TAG_BYTES  # the consumer's tag is ours
    for _ in range(1 if is_close else 2):
        begin, at = at + 1, at + 1 + plain[at]
        plain[begin:at] = bytes(one if one < 128 else ord("?") for one in plain[begin:at])
    return bytes(plain)
