import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import InvalidMessage
from services.messages import (
    ENVELOPE_MAX_BYTES,
    ENVELOPE_MAX_HINTS,
    Hint,
    chunked,
    decode,
    encode,
    parse_strict_json,
)

# Any text of the right length is an id to us; a lone surrogate or a NUL cannot come out of a database.
IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=64)
HINTS = st.builds(Hint, IDS, st.integers(0, 2**31 - 1))


def envelope(*hints: object, **members: object) -> bytes:
    return json.dumps({"v": 1, "hints": hints, **members}).encode()


@given(st.lists(HINTS, min_size=1, max_size=20))
def test_what_is_encoded_decodes_to_the_same_hints(hints):
    decoded = decode(encode(hints))

    assert decoded.hints == tuple(hints)
    assert decoded.faults == ()


def test_the_fullest_envelope_of_our_own_ids_stays_readable():
    hints = [Hint(f"{number:08d}-aaaa-4aaa-8aaa-aaaaaaaaaaaa", 2**31 - 1) for number in range(ENVELOPE_MAX_HINTS)]

    body = encode(hints)

    assert len(body) <= ENVELOPE_MAX_BYTES
    assert decode(body).hints == tuple(hints)


@pytest.mark.parametrize("count", [0, ENVELOPE_MAX_HINTS + 1])
def test_an_envelope_of_no_hint_or_too_many_is_not_encoded(count):
    with pytest.raises(ValueError, match="1 to 100"):
        encode([Hint("a", 0)] * count)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        b'{"v":1}',
        b'{"v":1,"hints":[]}',
        b'{"v":1,"hints":{}}',
        b'{"v":1,"hints":"ab"}',
        b'{"v":2,"hints":[["a",0]]}',
        b'{"v":"1","hints":[["a",0]]}',
        b'{"hints":[["a",0]]}',
        b'{"v":1,"hints":[["a",0]]',
        b'{"v":1,"v":1,"hints":[["a",0]]}',
    ],
)
def test_a_body_that_is_no_envelope_of_version_1_is_refused(body):
    with pytest.raises(InvalidMessage):
        decode(body)


def test_an_envelope_of_101_hints_is_refused():
    with pytest.raises(InvalidMessage, match="1 to 100"):
        decode(envelope(*[["a", 0]] * 101))


def test_a_body_over_16_kib_is_refused_before_it_is_parsed():
    body = b" " * (ENVELOPE_MAX_BYTES + 1 - len(encode([Hint("a", 0)]))) + encode([Hint("a", 0)])

    with pytest.raises(InvalidMessage, match="16385 bytes"):
        decode(body)
    assert decode(body[1:]).hints == (Hint("a", 0),)


@pytest.mark.parametrize(
    "bad",
    [
        ["", 0],
        ["x" * 65, 0],
        ["a\0b", 0],
        ["a", -1],
        ["a", 2**31],
        ["a", 1.0],
        ["a", True],
        ["a", "0"],
        ["a", None],
        ["a"],
        ["a", 0, 0],
        [1, 0],
        "a",
        None,
        7,
        {"a": 0},
        [],
    ],
)
def test_a_bad_hint_is_set_apart_and_its_neighbours_go_on(bad):
    decoded = decode(envelope(["first", 0], bad, ["last", 3]))

    assert decoded.hints == (Hint("first", 0), Hint("last", 3))
    assert len(decoded.faults) == 1
    assert json.dumps(bad)[:60] in decoded.faults[0]


def test_each_bad_hint_has_a_fault_of_its_own_even_where_none_is_good():
    decoded = decode(envelope("one", "two", "three"))

    assert decoded.hints == ()
    assert len(decoded.faults) == 3


def test_a_fault_does_not_repeat_the_whole_of_a_long_hint():
    (fault,) = decode(envelope("x" * 10_000)).faults

    assert len(fault) < 200


def test_members_that_a_later_version_may_add_do_not_hinder():
    assert decode(envelope(["a", 1], trace="t-1")).hints == (Hint("a", 1),)


@given(st.lists(HINTS, max_size=30), st.integers(1, 40))
def test_chunks_are_the_same_hints_in_order_none_too_long_and_none_empty(hints, size):
    chunks = list(chunked(hints, size))

    assert [hint for chunk in chunks for hint in chunk] == hints
    assert all(1 <= len(chunk) <= size for chunk in chunks)


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        '{"a": NaN}',
        "[1, [Infinity]]",
        "1e999",
        "-1e999",
        '{"a": 1, "a": 2}',
        '{"a": {"b": 1, "b": 1}}',
        '[{"\\u0061": 1, "a": 2}]',
        '"\\ud800"',
        '{"\\udfff": 1}',
        '{"a": ["\\ud83d"]}',
        "[" * 8_000,
        "[" * 8_000 + "]" * 8_000,
        '{"a":' * 3_000 + "1" + "}" * 3_000,
        "9" * 5_000,
        '{"a": -' + "9" * 5_000 + "}",
        "",
        " ",
        "{",
        "{} {}",
        "'a'",
        "{'a': 1}",
        "[1,]",
        "01",
        "\ufeff{}",
    ],
    ids=lambda text: text[:20],
)
def test_what_rfc_8259_does_not_have_is_refused(text):
    with pytest.raises(InvalidMessage):
        parse_strict_json(text.encode())


@pytest.mark.parametrize(("opening", "innermost", "closing"), [("[", "", "]"), ("[", "1", "]"), ('{"a":', "1", "}")])
def test_how_deep_a_message_may_be_nested_depends_on_no_version_of_python(opening, innermost, closing):
    def nested(deep: int) -> bytes:
        return f"{opening * deep}{innermost}{closing * deep}".encode()

    assert parse_strict_json(nested(100)) == json.loads(nested(100))
    with pytest.raises(InvalidMessage, match=r"^it is nested too deeply: send a flat object$"):
        parse_strict_json(nested(101))


@pytest.mark.parametrize("body", [b"\xff", b'"\xc3\x28"', b'"\xed\xa0\x80"', b'{"a": "\xc3'])
def test_what_is_not_utf_8_is_refused(body):
    with pytest.raises(InvalidMessage):
        parse_strict_json(body)


def test_a_refusal_is_short_however_long_the_input_is():
    with pytest.raises(InvalidMessage) as caught:
        parse_strict_json(b"1" * 4_000 + b".0e9999")

    assert len(str(caught.value)) < 200


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abü€", max_size=3), inner, max_size=4),
        max_leaves=12,
    )
)
def test_sound_json_is_read_as_the_standard_library_reads_it(value):
    assert parse_strict_json(json.dumps(value).encode()) == value
    assert parse_strict_json(json.dumps(value, ensure_ascii=False).encode()) == value


def test_a_surrogate_pair_is_one_character_and_no_fault():
    assert parse_strict_json(b'"\\ud83d\\ude97"') == "🚗"
