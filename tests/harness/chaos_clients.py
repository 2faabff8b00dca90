"""The load of a run: clients that try until they get their 202, send some requests twice, and withdraw a few.

Their log is what they were told, all that the checker believes of the gateways.
"""

import asyncio
import contextlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import aiohttp

from services.clock import monotonic_s

ANSWER_WITHIN_S = 4.0
DUPLICATES_SHARE = 0.05
WITHDRAWN_SHARE = 0.03
WITHDRAWN_WITHIN_S = 4.0
JOULES_PER_CENTI_KWH = 36_000
RETRY_S = (0.1, 0.3, 1.0)


class Clients:
    """Sends `requests`, spread at random over `over_s`, to the gateways at `urls`."""

    def __init__(self, urls: Sequence[str], log: Path, *, seed: int, requests: int, over_s: float) -> None:
        self._urls = urls
        self._path = log
        self._log: TextIO
        self._http: aiohttp.ClientSession
        self._dice = random.Random(seed)
        self._over_s = over_s
        self.requests = requests
        self.told: set[str] = set()
        """The keys that have their 202."""
        self.refused: list[str] = []
        self.retries = 0

    async def send_all(self) -> None:
        """Return when every client has been answered, or refused."""
        self._began_at_s = monotonic_s()
        with self._path.open("w", encoding="utf-8", buffering=1) as self._log:
            timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(timeout=timeout, connector=connector) as self._http:
                plans = [self._plan(number) for number in range(self.requests)]
                async with asyncio.TaskGroup() as group:
                    for plan in plans:
                        group.create_task(self._one(**plan))

    def _plan(self, number: int) -> dict[str, Any]:
        """All that is left to chance, drawn before anything happens."""
        dice = self._dice
        gateway = dice.randrange(len(self._urls))
        return {
            "key": f"chaos-{number}",
            "centi_kwh": dice.randint(150, 900),
            "power_kw": dice.choice((7.4, 11, 22)),
            "priority": dice.choice((0, 0, 0, 5)),
            "starts_in_s": dice.uniform(0, self._over_s),
            "gateways": [gateway, 1 - gateway] if dice.random() < DUPLICATES_SHARE else [gateway],
            "withdraw_in_s": dice.uniform(0, WITHDRAWN_WITHIN_S) if dice.random() < WITHDRAWN_SHARE else None,
        }

    async def _one(
        self,
        *,
        key: str,
        centi_kwh: int,
        power_kw: float,
        priority: int,
        starts_in_s: float,
        gateways: list[int],
        withdraw_in_s: float | None,
    ) -> None:
        await asyncio.sleep(max(0.0, self._began_at_s + starts_in_s - monotonic_s()))
        body = {
            "vehicle_id": f"EV-{key}",
            "energy_kwh": centi_kwh / 100,
            "max_power_kw": power_kw,
            "priority": priority,
        }
        request_ids = await asyncio.gather(
            *(self._post(key, body, centi_kwh * JOULES_PER_CENTI_KWH, first) for first in gateways)
        )
        if withdraw_in_s is not None and request_ids[0] is not None:
            await asyncio.sleep(withdraw_in_s)
            await self._withdraw(request_ids[0], gateways[0])

    async def _post(self, key: str, body: dict[str, Any], energy_j: int, gateway: int) -> str | None:
        status, answer = await self._until_answered(
            "POST", "/charge-requests", gateway, json=body, headers={"Idempotency-Key": key}
        )
        if status != 202:
            self.refused.append(f"{key}: {status} {answer}")
            return None
        self.told.add(key)
        self._note("told", key=key, request_id=answer["request_id"], energy_j=energy_j)
        return answer["request_id"]

    async def _withdraw(self, request_id: str, gateway: int) -> None:
        status, answer = await self._until_answered("DELETE", f"/charge-requests/{request_id}", gateway)
        if status in (200, 202):
            self._note("withdrawn", request_id=request_id, status=answer["status"])
        else:
            self.refused.append(f"DELETE {request_id}: {status} {answer}")

    async def _until_answered(self, method: str, path: str, gateway: int, **what: Any) -> tuple[int, Any]:
        """Ask one gateway after the other until one answers with success or the client's fault."""
        tries = 0
        while True:
            url = self._urls[(gateway + tries) % len(self._urls)]
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError):
                async with self._http.request(method, url + path, **what) as response:
                    answer = await response.json(content_type=None)
                    if response.status < 500:
                        return response.status, answer
            await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)] * random.uniform(0.5, 1.5))
            tries += 1
            self.retries += 1

    def _note(self, event: str, **what: Any) -> None:
        self._log.write(json.dumps({"event": event, **what, "at_s": monotonic_s()}) + "\n")
