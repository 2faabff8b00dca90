"""The load of a run: clients that try until they get their 202, send some requests twice, and withdraw a few.

Their log is what they were told, all that the checker believes of the gateways. Several processes share the load:
`python -m harness.chaos_clients`, with a `Share` in JSON as its argument. Each tells its figures at its end, and
SIGTERM ends it.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from harness.chaos_segments import SegmentWriter

from services.clock import monotonic_s

ANSWER_WITHIN_S = 4.0
DUPLICATES_SHARE = 0.05
WITHDRAWN_SHARE = 0.03
WITHDRAWN_WITHIN_S = 4.0
JOULES_PER_CENTI_KWH = 36_000
RETRY_S = (0.1, 0.3, 1.0)
UNANSWERED_MAX = 500
"""While so many wait for their answers, nobody else sends."""
SYNCED_EVERY_S = 0.2
REFUSED_TOLD = 10
WORDS = 200
"""Characters of an answer that are told."""


@dataclass(frozen=True)
class Share:
    """What one of `processes` sends: every request whose number leaves `index` when it is divided by them."""

    urls: Sequence[str]
    folder: str
    seed: int
    requests: int
    over_s: float
    began_at_s: float
    index: int = 0
    processes: int = 1


@dataclass
class Figures:
    """What became of a share."""

    told: int = 0
    """Requests that have their 202."""
    retries: int = 0
    refused: list[str] = field(default_factory=list)
    """The first answers that no gateway should give: a refusal, or a fault of its own other than 503."""
    refusals: int = 0


class Client:
    """Asks the gateways, one after the other, and notes what it was told; notes reach the disk together."""

    def __init__(self, urls: Sequence[str], writer: SegmentWriter, http: aiohttp.ClientSession) -> None:
        self._urls = urls
        self._writer = writer
        self._http = http
        self._notes: list[dict[str, Any]] = []
        self.figures = Figures()

    async def submit(self, key: str, body: dict[str, Any], energy_j: int, gateway: int = 0) -> str | None:
        """The id of a new request; None where it was refused."""
        try:
            status, answer = await self._until_answered(
                "POST", "/charge-requests", gateway, json=body, headers={"Idempotency-Key": key}
            )
        except asyncio.CancelledError:
            self._note("gave_up", key=key)
            raise
        if status != 202:
            self._refuse(f"{key}: {status} {answer}")
            return None
        self._note("told", key=key, request_id=answer["request_id"], energy_j=energy_j)
        return answer["request_id"]

    async def withdraw(self, request_id: str, gateway: int) -> None:
        self._note("withdrawing", request_id=request_id)
        status, answer = await self._until_answered("DELETE", f"/charge-requests/{request_id}", gateway)
        if status in (200, 202):
            self._note("withdrawn", request_id=request_id, status=answer["status"])
        else:
            self._refuse(f"DELETE {request_id}: {status} {answer}")

    async def look_up(self, request_id: str) -> dict[str, Any]:
        """What a gateway says of a request; problem details where it does not know it."""
        _, answer = await self._until_answered("GET", f"/charge-requests/{request_id}", 0)
        return answer

    def sync(self) -> None:
        """Write what was noted; it is on disk afterwards."""
        notes, self._notes = self._notes, []
        self._writer.write(notes)

    async def _until_answered(self, method: str, path: str, gateway: int, **what: Any) -> tuple[int, Any]:
        """Ask one gateway after the other until one answers with success or the client's fault.

        A gateway that cannot serve says so with 503 and tells when to ask again; any other fault of its own is noted.
        """
        tries = 0
        while True:
            url = self._urls[(gateway + tries) % len(self._urls)]
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with self._http.request(method, url + path, **what) as response:
                    body = await response.read()
                    with contextlib.suppress(ValueError):
                        if response.status < 500:
                            return response.status, json.loads(body)
                    if response.status != 503 or "Retry-After" not in response.headers:
                        self._refuse(f"{method} {path}: {response.status} {body.decode(errors='replace')[:WORDS]}")
            await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)] * random.uniform(0.5, 1.5))
            tries += 1
            self.figures.retries += 1

    def _note(self, event: str, **what: Any) -> None:
        self._notes.append({"event": event, **what, "at_s": monotonic_s()})

    def _refuse(self, words: str) -> None:
        self.figures.refusals += 1
        if len(self.figures.refused) < REFUSED_TOLD:
            self.figures.refused.append(words)


@contextlib.asynccontextmanager
async def client(urls: Sequence[str], folder: Path, name: str) -> AsyncIterator[Client]:
    """A client that writes to `folder`; all of its notes are on disk at the end."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
        one = Client(urls, SegmentWriter(folder, name), http)
        syncing = asyncio.create_task(_sync_for_ever(one))
        try:
            yield one
        finally:
            syncing.cancel()
            await asyncio.gather(syncing, return_exceptions=True)
            one.sync()


async def _sync_for_ever(one: Client) -> None:
    while True:
        await asyncio.sleep(SYNCED_EVERY_S)
        one.sync()


async def send(share: Share) -> Figures:
    """Send a share; returns when every client has been answered or refused, or when SIGTERM comes."""
    async with client(share.urls, Path(share.folder), f"client-{share.index}") as one:
        sending = asyncio.create_task(_send_all(share, one))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, sending.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await sending
    return one.figures


async def _send_all(share: Share, one: Client) -> None:
    places = asyncio.Semaphore(UNANSWERED_MAX)
    async with asyncio.TaskGroup() as group:
        for number in range(share.index, share.requests, share.processes):
            dice = random.Random(f"{share.seed}-{number}")
            starts_at_s = share.began_at_s + (number + dice.random()) * share.over_s / share.requests
            await asyncio.sleep(max(0.0, starts_at_s - monotonic_s()))
            await places.acquire()
            task = group.create_task(_send_one(one, f"chaos-{number}", dice, len(share.urls)))
            task.add_done_callback(lambda _: places.release())


async def _send_one(one: Client, key: str, dice: random.Random, gateways: int) -> None:
    centi_kwh, first = dice.randint(150, 900), dice.randrange(gateways)
    body = {
        "vehicle_id": f"EV-{key}",
        "energy_kwh": centi_kwh / 100,
        "max_power_kw": dice.choice((7.4, 11, 22)),
        "priority": dice.choice((0, 0, 0, 5)),
    }
    asked = [first, first + 1] if dice.random() < DUPLICATES_SHARE else [first]
    withdrawn_in_s = dice.uniform(0, WITHDRAWN_WITHIN_S) if dice.random() < WITHDRAWN_SHARE else None
    energy_j = centi_kwh * JOULES_PER_CENTI_KWH
    request_id, *_ = await asyncio.gather(*(one.submit(key, body, energy_j, gateway) for gateway in asked))
    if request_id is None:
        return
    one.figures.told += 1
    if withdrawn_in_s is not None:
        await asyncio.sleep(withdrawn_in_s)
        await one.withdraw(request_id, first)


class ClientProcess:
    """A process that sends a share."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ended = asyncio.create_task(process.communicate())

    @property
    def is_done(self) -> bool:
        return self._ended.done()

    async def figures(self) -> Figures:
        """What became of its share; it is ended where it is not done."""
        if not self.is_done:
            self._process.terminate()
        told, _ = await self._ended
        assert self._process.returncode == 0, f"a process of clients ended with {self._process.returncode}"
        return Figures(**json.loads(told))


async def start(share: Share, environment: dict[str, str]) -> ClientProcess:
    """Begin to send a share."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "harness.chaos_clients", json.dumps(asdict(share))),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parents[1])},
        start_new_session=True,
    )
    return ClientProcess(process)


def main() -> None:
    """Send the share that the first argument tells."""
    figures = asyncio.run(send(Share(**json.loads(sys.argv[1]))))
    print(json.dumps(asdict(figures)))


if __name__ == "__main__":
    main()
