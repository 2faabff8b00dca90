"""What travels through the broker: envelopes of hints, version 1.

A hint says "look at this request, as of this attempt"; the ledger says what the request is. Several hints share
an envelope because Python and the broker pay per message. Wire form: `{"v": 1, "hints": [["<request id>", 0], …]}`.
"""

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from services.errors import InvalidMessage

ENVELOPE_VERSION = 1
ENVELOPE_MAX_HINTS = 100
ENVELOPE_MAX_BYTES = 16 * 1024
NESTED_MAX = 100
"""How deep lists and objects may be nested; Python's own bound differs between its versions."""
_ID_MAX_CHARS = 64


class Hint(NamedTuple):
    """One request at one attempt (attempt 0: accepted and never assigned)."""

    request_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Envelope:
    """A decoded message: the hints that could be read, and what was wrong with the others."""

    hints: tuple[Hint, ...]
    faults: tuple[str, ...] = ()


def encode(hints: Sequence[Hint]) -> bytes:
    """The body of one envelope; `hints` holds 1 to 100 of them."""
    if not 1 <= len(hints) <= ENVELOPE_MAX_HINTS:
        raise ValueError(f"an envelope holds 1 to {ENVELOPE_MAX_HINTS} hints, not {len(hints)}")
    return json.dumps({"v": ENVELOPE_VERSION, "hints": hints}, separators=(",", ":")).encode()


def decode(body: bytes) -> Envelope:
    """Read an envelope; single unreadable hints are set apart, so that their neighbours go on.

    Raises `InvalidMessage` where nothing of the body can be trusted.
    """
    if len(body) > ENVELOPE_MAX_BYTES:
        raise InvalidMessage(f"body has {len(body)} bytes, the most is {ENVELOPE_MAX_BYTES}")
    message = parse_strict_json(body)
    if not isinstance(message, dict) or message.get("v") != ENVELOPE_VERSION:
        raise InvalidMessage(f"no envelope of version {ENVELOPE_VERSION}")
    raw_hints = message.get("hints")
    if not isinstance(raw_hints, list) or not 1 <= len(raw_hints) <= ENVELOPE_MAX_HINTS:
        raise InvalidMessage(f"hints must be a list of 1 to {ENVELOPE_MAX_HINTS}")
    hints: list[Hint] = []
    faults: list[str] = []
    for raw in raw_hints:
        hint = _read_hint(raw)
        if hint is None:
            faults.append(f"unreadable hint {json.dumps(raw)[:120]}")
        else:
            hints.append(hint)
    return Envelope(tuple(hints), tuple(faults))


def _read_hint(raw: object) -> Hint | None:
    match raw:
        case [str(request_id), int(attempt)] if (
            0 < len(request_id) <= _ID_MAX_CHARS
            and "\0" not in request_id  # databases cut text there, or refuse the whole batch
            and 0 <= attempt < 2**31
            and not isinstance(attempt, bool)
        ):
            return Hint(request_id, attempt)
        case _:
            return None


def chunked(hints: Sequence[Hint], size: int) -> Iterator[Sequence[Hint]]:
    """`hints` in their order, in pieces of at most `size`."""
    for start in range(0, len(hints), size):
        yield hints[start : start + size]


def parse_strict_json(text: bytes) -> Any:
    """Parse UTF-8 JSON as RFC 8259 has it: no NaN, no Infinity, no repeated member, no lone surrogate.

    It refuses what is nested more than `NESTED_MAX` deep, too. Raises `InvalidMessage` with cause and cure.
    """
    if not text.strip():
        raise InvalidMessage("it is empty: send JSON")
    if text.startswith(codecs.BOM_UTF8):
        raise InvalidMessage("it begins with a byte order mark (BOM): send UTF-8 without one")
    try:
        parsed = json.loads(
            text.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_bounded,
            object_pairs_hook=_refuse_repeated,
        )
        json.dumps(parsed, ensure_ascii=False).encode("utf-8")
        _refuse_nested(parsed)
    except InvalidMessage:
        raise
    except UnicodeDecodeError as error:
        raise InvalidMessage(f"it is not UTF-8 from byte {error.start} on: encode it as UTF-8") from None
    except UnicodeEncodeError:
        raise InvalidMessage("a text in it has half of a surrogate pair: send whole characters") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InvalidMessage(f"it is not JSON ({error.msg}: {place}): correct it there") from None
    except RecursionError:
        raise InvalidMessage("it is nested too deeply: send a flat object") from None
    return parsed


def _refuse_nested(parsed: Any) -> None:
    """Raise `InvalidMessage` for lists and objects that are nested deeper than `NESTED_MAX`."""
    level = [parsed]
    for _ in range(NESTED_MAX):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    if any(isinstance(one, dict | list) for one in level):
        raise InvalidMessage("it is nested too deeply: send a flat object")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidMessage(f"{name} is no JSON number: send a finite one")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise InvalidMessage(f"the number {digits[:40]} is too large: send one below 1e308")
    return value


def _bounded(digits: str) -> int:
    _finite(digits)  # what is no float is no number of ours, and Python reads no integer of endless length
    return int(digits)


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidMessage(f"it has the member {twice[:40]!a} more than once: send it once")
    return members
