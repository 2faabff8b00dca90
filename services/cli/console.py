"""RabbitMQ's management console for commands: whatever goes wrong becomes one error with its cure."""

import base64
import binascii
import json
from typing import Any, NoReturn
from urllib.parse import quote

import aiohttp
from yarl import URL

from services.errors import EvenloadError

ADMINISTRATOR = "administrator"
"""The tag of users who may change anything at the console."""
ALARMS = "/api/health/checks/alarms"
"""Answers 503 where there is one."""
ANSWER_DEADLINE_S = 15.0
BODY_MAX_BYTES = 64 * 1024
"""Of each message; a quarantined one is smaller."""


class ConsoleUnusable(EvenloadError):
    """The console does not answer, or refuses, or is none; the text tells the cure."""


class ConsoleRefused(ConsoleUnusable):
    """The console's address or the user is a wrong setting."""


class Console:
    """One console, asked as one user about one vhost; `is_own` says that it is that of the local stack."""

    def __init__(self, url: str, user: str, password: str, vhost: str, *, is_own: bool = False) -> None:
        """Raises `ConsoleRefused` for an address that is none."""
        self.url = _checked(url)
        self.user = user
        self.vhost = vhost
        self.is_own = is_own
        self._headers = {"Authorization": aiohttp.encode_basic_auth(user, password)}

    async def tags(self) -> set[str]:
        """The tags of the user; raises `ConsoleUnusable`."""
        status, answer = await self._ask("GET", "/api/whoami")
        if status in (401, 403):
            self._refuse_user()
        if not isinstance(answer, dict) or "tags" not in answer:
            self._refuse_answer()
        tags = answer["tags"]  # a list, or words with commas between them
        return set(tags if isinstance(tags, list) else str(tags).replace(",", " ").split())

    async def look(self, path: str) -> Any | None:
        """What the console shows at `path`, in which `{vhost}` stands for the vhost; None where there is nothing.

        Raises `ConsoleRefused` where the user may not see it, else `ConsoleUnusable`.
        """
        status, answer = await self._ask("GET", path)
        if status in (401, 403):
            self._refuse_user()
        if status == 404:
            return None
        if status >= 400 and path != ALARMS:
            raise ConsoleUnusable(
                f"the console at {self.url} fails at {path.format(vhost=self.vhost)} ({_reason(answer) or status}): "
                "see the broker's log"
            )
        if answer is None:
            self._refuse_answer()
        return answer

    async def rows(self, path: str) -> list[dict[str, Any]] | None:
        """The rows that the console shows at `path`; None where there is nothing. Raises as `look`."""
        answer = await self.look(path)
        if answer is not None and not _are_rows(answer):
            self._refuse_answer()
        return answer

    async def change(self, method: str, path: str, body: object) -> str | None:
        """Change something; returns why the broker refuses that, or None. Raises `ConsoleUnusable`."""
        status, answer = await self._ask(method, path, body)
        return None if status < 400 else _reason(answer) or f"the console answers {status}"

    async def peek(self, queue: str, most: int) -> tuple[list[dict[str, Any]], int]:
        """The `most` oldest messages of a queue, which stay in it, and how many lie there; raises `ConsoleUnusable`.

        Payloads are text: bytes that are none are escaped.
        """
        asked = {"count": most, "ackmode": "ack_requeue_true", "encoding": "auto", "truncate": BODY_MAX_BYTES}
        status, answer = await self._ask("POST", f"/api/queues/{{vhost}}/{quote(queue, safe='')}/get", asked)
        if status == 401:
            self._refuse_user()
        if status == 404:
            raise ConsoleUnusable(
                f"the broker at {self.url} has no queue {queue!r} in vhost {self.vhost!r}: set EVENLOAD_CONSOLE_VHOST"
            )
        if status >= 400:
            raise ConsoleUnusable(
                f"the console at {self.url} does not let user {self.user!r} read {queue!r} "
                f"({_reason(answer) or status}): give one with the tag `management` and the right to read it"
            )
        if not _are_rows(answer):
            self._refuse_answer()
        for one in answer:
            one["payload"] = _text(one)
        behind = answer[-1].get("message_count", 0) if answer else 0
        return answer, len(answer) + (behind if isinstance(behind, int) else 0)

    async def _ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        timeout = aiohttp.ClientTimeout(total=ANSWER_DEADLINE_S)
        url = URL(self.url + path.replace("{vhost}", quote(self.vhost, safe="")), encoded=True)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=self._headers) as http,
                http.request(method, url, json=body, allow_redirects=False) as response,
            ):
                text = await response.read()
                status, answer = response.status, json.loads(text) if text else None
        except TimeoutError:
            raise ConsoleUnusable(
                f"the console at {self.url} does not answer within {ANSWER_DEADLINE_S:g} s: is the broker frozen?"
            ) from None
        except (aiohttp.ClientPayloadError, ValueError):
            self._refuse_answer()
        except (aiohttp.ClientError, OSError) as error:
            raise ConsoleUnusable(f"no console answers at {self.url} ({error}): correct --console") from None
        # RabbitMQ gives a reason for each refusal, and sends nobody elsewhere.
        if not 200 <= status < 300 and status < 500 and _reason(answer) is None:
            self._refuse_answer()
        return status, answer

    def _refuse_user(self) -> NoReturn:
        raise ConsoleRefused(
            f"the console at {self.url} refuses user {self.user!r} in vhost {self.vhost!r}: set "
            "EVENLOAD_CONSOLE_USER, EVENLOAD_CONSOLE_PASSWORD and EVENLOAD_CONSOLE_VHOST"
        )

    def _refuse_answer(self) -> NoReturn:
        raise ConsoleUnusable(f"what answers at {self.url} is no RabbitMQ console: correct --console") from None


def _checked(url: str) -> str:
    try:
        parsed = URL(url)
        is_sound = parsed.scheme in ("http", "https") and bool(parsed.host) and not parsed.user
        is_sound = is_sound and not parsed.query_string and not parsed.fragment
    except ValueError:
        is_sound = False
    if not is_sound:
        raise ConsoleRefused("--console: an address like http://127.0.0.1:15672 is needed, without user and password")
    return url.rstrip("/")


def _are_rows(answer: object) -> bool:
    return isinstance(answer, list) and all(isinstance(one, dict) for one in answer)


def _reason(answer: object) -> str | None:
    reason = answer.get("reason") if isinstance(answer, dict) else None
    return None if reason is None else str(reason)


def _text(message: dict[str, Any]) -> str:
    payload = str(message.get("payload", ""))
    if message.get("payload_encoding") != "base64":
        return payload
    try:
        return base64.b64decode(payload).decode("utf-8", "backslashreplace")
    except (binascii.Error, ValueError):
        return payload
