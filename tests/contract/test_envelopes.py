"""Version 1 on the wire, byte for byte: a process of yesterday's version must read today's messages, and back."""

import pytest

from services.messages import Envelope, Hint, decode, encode

GOLDEN = [
    (b'{"v":1,"hints":[["a",0]]}', [Hint("a", 0)]),
    (
        b'{"v":1,"hints":[["0b0a7c1e-6f0e-4f6e-9d6f-1c2f3a4b5c6d",0],["EV-2",17]]}',
        [Hint("0b0a7c1e-6f0e-4f6e-9d6f-1c2f3a4b5c6d", 0), Hint("EV-2", 17)],
    ),
    (b'{"v":1,"hints":[["a",2147483647],["a",1]]}', [Hint("a", 2**31 - 1), Hint("a", 1)]),
    (b'{"v":1,"hints":[["\\u00fc\\"\\\\",3]]}', [Hint('ü"\\', 3)]),
]


@pytest.mark.parametrize(("body", "hints"), GOLDEN)
def test_hints_are_written_as_these_bytes(body, hints):
    assert encode(hints) == body


@pytest.mark.parametrize(("body", "hints"), GOLDEN)
def test_these_bytes_are_read_as_hints(body, hints):
    assert decode(body) == Envelope(tuple(hints))


@pytest.mark.parametrize(
    "body",
    [
        b' {\n  "hints" : [ [ "a" , 0 ] ] ,\t"v" : 1 } \r\n',
        b'{"v":1,"hints":[["\\u0061",0]]}',
        b'{"v":1,"hints":[["a",0]],"sent_by":"a later version"}',
    ],
)
def test_the_same_envelope_written_by_somebody_else_is_read_too(body):
    assert decode(body) == Envelope((Hint("a", 0),))


def test_a_bad_hint_among_good_ones_is_told_as_it_stood():
    assert decode(b'{"v":1,"hints":[["a",0],["b",-1],["c",2]]}') == Envelope(
        (Hint("a", 0), Hint("c", 2)), ('unreadable hint ["b", -1]',)
    )
