"""The gateway's HTTP API for commands: whatever goes wrong becomes one error with its cure."""

import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any, NoReturn
from urllib.parse import quote

import aiohttp
from yarl import URL

from services.errors import EvenloadError

ANSWER_DEADLINE_S = 15.0
ENDED = frozenset({"completed", "stopped", "cancelled", "expired", "failed"})
"""The terminal states of a request, as the API names them."""
_NUMBERS = ("sessions", "connectors", "power_kw", "limit_kw")
_SERVICE = frozenset({"service", "name", "ready", "causes"})
_DESCRIBED = frozenset({"request_id", "status", "substation", "history"})


class GatewayUnusable(EvenloadError):
    """The gateway does not answer, or answers what cannot be right; the text tells the cure."""


class RequestRefused(EvenloadError):
    """The gateway answered, and refused; the text is its own, which tells the cure."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{detail} ({status})")
        self.status = status
        self.detail = detail


class Gateway:
    """One gateway; each method raises `GatewayUnusable` or `RequestRefused`."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self.url = url

    async def load_table(self) -> dict[str, Any]:
        """`GET /substations`: the live load table, and how many requests are in each state."""
        table = await self._ask("GET", "/substations")
        items = table.get("items")
        if not isinstance(items, list) or not all(_is_line(one) for one in items):
            self._refuse_answer()
        return table

    async def services(self) -> list[dict[str, Any]]:
        """`GET /services`: every process that the gateway knows, and why it is not ready."""
        items = (await self._ask("GET", "/services")).get("items")
        if not isinstance(items, list) or not all(isinstance(one, dict) and one.keys() >= _SERVICE for one in items):
            self._refuse_answer()
        return items

    async def request(self, request_id: str) -> dict[str, Any]:
        """`GET /charge-requests/{id}`: one request with its history and decision."""
        answer = await self._ask("GET", f"/charge-requests/{_quoted(request_id)}")
        if not answer.keys() >= _DESCRIBED or not isinstance(answer["history"], list):
            self._refuse_answer()
        return answer

    async def requests(self, **filters: str | int | None) -> list[dict[str, Any]]:
        """`GET /charge-requests`: the newest requests that pass the filters."""
        query = {name: str(value) for name, value in filters.items() if value is not None}
        items = (await self._ask("GET", "/charge-requests", params=query)).get("items")
        if not isinstance(items, list) or not all(isinstance(one, dict) and "status" in one for one in items):
            self._refuse_answer()
        return items

    async def submit(self, body: Mapping[str, Any], key: str | None) -> dict[str, Any]:
        """`POST /charge-requests`, under an idempotency key where one is given."""
        headers = {} if key is None else {"Idempotency-Key": key}
        answer = await self._ask("POST", "/charge-requests", json=body, headers=headers)
        if not {"request_id", "status"} <= answer.keys():
            self._refuse_answer()
        return answer

    async def order(self, substation: str, what: str, order: Mapping[str, Any]) -> dict[str, Any]:
        """`PUT /substations/{id}/limit` or `/operational`: the orders as they stand now."""
        return self._with_orders(await self._ask("PUT", f"/substations/{_quoted(substation)}/{what}", json=order))

    async def substation(self, substation: str) -> dict[str, Any]:
        """`GET /substations/{id}`: one line of the load table, and the orders for it."""
        return self._with_orders(await self._ask("GET", f"/substations/{_quoted(substation)}"))

    def _with_orders(self, answer: dict[str, Any]) -> dict[str, Any]:
        orders = answer.get("orders")
        if "substation" not in answer or not isinstance(orders, dict) or not _is_number(orders.get("own_limit_kw")):
            self._refuse_answer()
        return answer

    async def _ask(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        try:
            async with self._http.request(method, URL(self.url + path, encoded=True), **more) as response:
                status, answer = response.status, await response.json(content_type=None)
        except TimeoutError:
            raise GatewayUnusable(
                f"the gateway at {self.url} does not answer within {ANSWER_DEADLINE_S:g} s: ask `evenload doctor` why"
            ) from None
        except (aiohttp.ContentTypeError, aiohttp.ClientPayloadError, ValueError):
            self._refuse_answer()
        except (aiohttp.ClientError, OSError) as error:
            raise GatewayUnusable(
                f"no gateway answers at {self.url} ({_cause(error)}): run `make run`, or give --url"
            ) from None
        if not isinstance(answer, dict) or (status >= 400 and not isinstance(answer.get("detail"), str)):
            self._refuse_answer()
        if status >= 400:
            raise RequestRefused(status, answer["detail"])
        return answer

    def _refuse_answer(self) -> NoReturn:
        raise GatewayUnusable(f"what answers at {self.url} is no Evenload gateway: correct --url") from None


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Gateway]:
    """A client of the gateway at `url`; raises `GatewayUnusable` where that is no address."""
    url = checked_url(url)
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=ANSWER_DEADLINE_S)) as http:
        yield Gateway(http, url)


def checked_url(url: str) -> str:
    """The address of a gateway without a slash at its end; raises `GatewayUnusable` for what is none."""
    try:
        parsed = URL(url)
        is_sound = parsed.scheme in ("http", "https") and bool(parsed.host) and parsed.path in ("", "/")
        is_sound = is_sound and not parsed.query_string and not parsed.fragment
    except ValueError:
        is_sound = False
    if not is_sound:
        raise GatewayUnusable(f"--url: an address like http://127.0.0.1:8080 is needed (got {url!r})")
    return url.rstrip("/")


def _quoted(name: str) -> str:
    """A name as a part of a path; what was no UTF-8 on the command line stays the bytes that it was."""
    return quote(name, safe="", errors="surrogateescape")


def _is_line(one: object) -> bool:
    if not isinstance(one, dict) or not isinstance(one.get("substation"), str):
        return False
    shares = one.get("utilisation")
    return (shares is None or _is_number(shares)) and all(_is_number(one.get(name)) for name in _NUMBERS)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cause(error: Exception) -> str:
    number = getattr(error, "errno", None) or 0
    return os.strerror(number) if number > 0 else str(error) or type(error).__name__
