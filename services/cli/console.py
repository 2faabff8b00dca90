"""RabbitMQ's management console for commands: whatever goes wrong becomes one error with its cure."""

import base64
import binascii
from typing import Any, NoReturn
from urllib.parse import quote

import aiohttp
from yarl import URL

from services.errors import EvenloadError

ANSWER_DEADLINE_S = 15.0
BODY_MAX_BYTES = 64 * 1024
"""Of each message; a quarantined one is smaller."""


class ConsoleUnusable(EvenloadError):
    """The console does not answer, or refuses, or is none; the text tells the cure."""


class Console:
    """One console, asked as one user about one vhost."""

    def __init__(self, url: str, user: str, password: str, vhost: str) -> None:
        self._url = _checked(url)
        self._user = user
        self._headers = {"Authorization": aiohttp.encode_basic_auth(user, password)}
        self._vhost = vhost

    async def peek(self, queue: str, most: int) -> tuple[list[dict[str, Any]], int]:
        """The `most` oldest messages of a queue, which stay in it, and how many lie there; raises `ConsoleUnusable`.

        Payloads are text: bytes that are none are escaped.
        """
        asked = {"count": most, "ackmode": "ack_requeue_true", "encoding": "auto", "truncate": BODY_MAX_BYTES}
        path = f"/api/queues/{quote(self._vhost, safe='')}/{quote(queue, safe='')}/get"
        status, answer = await self._ask(path, asked)
        if status == 401:
            raise ConsoleUnusable(
                f"the console at {self._url} refuses user {self._user!r} in vhost {self._vhost!r}: set "
                "EVENLOAD_CONSOLE_USER, EVENLOAD_CONSOLE_PASSWORD and EVENLOAD_CONSOLE_VHOST"
            )
        if status == 404:
            raise ConsoleUnusable(
                f"the broker at {self._url} has no queue {queue!r} in vhost {self._vhost!r}: set EVENLOAD_CONSOLE_VHOST"
            )
        if status >= 400:
            told = answer.get("reason") if isinstance(answer, dict) else None
            raise ConsoleUnusable(
                f"the console at {self._url} does not let user {self._user!r} read {queue!r} "
                f"({told or status}): give one with the tag `management` and the right to read it"
            )
        if not isinstance(answer, list) or not all(isinstance(one, dict) for one in answer):
            self._refuse_answer()
        for one in answer:
            one["payload"] = _text(one)
        behind = answer[-1].get("message_count", 0) if answer else 0
        return answer, len(answer) + (behind if isinstance(behind, int) else 0)

    async def _ask(self, path: str, asked: dict[str, Any]) -> tuple[int, Any]:
        timeout = aiohttp.ClientTimeout(total=ANSWER_DEADLINE_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=self._headers) as http,
                http.post(URL(self._url + path, encoded=True), json=asked, allow_redirects=False) as response,
            ):
                return response.status, await response.json(content_type=None)
        except TimeoutError:
            raise ConsoleUnusable(
                f"the console at {self._url} does not answer within {ANSWER_DEADLINE_S:g} s: is the broker frozen?"
            ) from None
        except (aiohttp.ClientPayloadError, ValueError):
            self._refuse_answer()
        except (aiohttp.ClientError, OSError) as error:
            raise ConsoleUnusable(f"no console answers at {self._url} ({error}): correct --console") from None

    def _refuse_answer(self) -> NoReturn:
        raise ConsoleUnusable(f"what answers at {self._url} is no RabbitMQ console: correct --console") from None


def _checked(url: str) -> str:
    try:
        parsed = URL(url)
        is_sound = parsed.scheme in ("http", "https") and bool(parsed.host) and not parsed.user
        is_sound = is_sound and not parsed.query_string and not parsed.fragment
    except ValueError:
        is_sound = False
    if not is_sound:
        raise ConsoleUnusable("--console: an address like http://127.0.0.1:15672 is needed, without user and password")
    return url.rstrip("/")


def _text(message: dict[str, Any]) -> str:
    payload = str(message.get("payload", ""))
    if message.get("payload_encoding") != "base64":
        return payload
    try:
        return base64.b64decode(payload).decode("utf-8", "backslashreplace")
    except (binascii.Error, ValueError):
        return payload
