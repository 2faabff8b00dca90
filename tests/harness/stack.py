"""The local stack as a user starts it, with what a user can see and do."""

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from email.message import Message
from pathlib import Path
from typing import Any

import psutil

from services.ledger.states import TERMINAL, Status, Transition, ended_once, faults
from services.local.leftovers import DIR_MARK

ROOT = Path(__file__).resolve().parents[2]
START_WITHIN_S = 150.0
OPEN = tuple(one for one in Status if one not in TERMINAL)
Answer = tuple[int, Any]


class Api:
    """A gateway at an address."""

    def __init__(self, url: str) -> None:
        self.url = url

    def request(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        status, _, answer = self.whole_answer(method, path, body, **headers)
        return status, answer

    def whole_answer(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, Message, dict[str, Any]]:
        """Status, headers and body."""
        request = urllib.request.Request(  # noqa: S310
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers=headers | ({} if body is None else {"Content-Type": "application/json"}),
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310
                return response.status, response.headers, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, json.loads(error.read())

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def post(self, **body: object) -> Answer:
        return self.request("POST", "/charge-requests", body)


class Stack(Api):
    """A running `make run` with its own data folder and port."""

    def __init__(
        self,
        data: Path,
        port: int,
        environment: dict[str, str],
        command: list[str],
        cwd: Path = ROOT,
        errors: Path | None = None,
    ) -> None:
        super().__init__(f"http://127.0.0.1:{port}")
        self.data = data
        self.port = port
        self.speed = environment.get("EVENLOAD_SPEED", "60")
        self.lines: list[str] = []
        self._changed = threading.Condition()
        # In one stream with its output, unless there is a file for them.
        error_file = None if errors is None else errors.open("w")
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("EVENLOAD_")},
                "EVENLOAD_DATA_DIR": str(data),
                "EVENLOAD_GATEWAY_PORT": str(port),
                "EVENLOAD_FIRST_RUSH": "0",
                "EVENLOAD_PROMETHEUS": "0",
                "COLUMNS": "120",
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=error_file or subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        if error_file is not None:
            error_file.close()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def until_said(self, pattern: str, within_s: float = START_WITHIN_S) -> re.Match[str]:
        """Wait for a line; fails with everything that was said instead."""
        deadline = time.monotonic() + within_s
        with self._changed:
            while not (match := re.search(pattern, self.output)):
                left = deadline - time.monotonic()
                gone = self.process.poll() is not None and not self._reader.is_alive()
                assert left > 0, f"not said within {within_s:g} s: {pattern}\n{self.output}"
                assert not gone, f"ended ({self.process.returncode}) without saying {pattern}\n{self.output}"
                self._changed.wait(min(left, 1))
        return match

    def until_up(self) -> "Stack":
        self.until_said(r"pids +\S+ \d+")
        until(lambda: len(self.get("/substations")[1]["items"]) == 4, "a load table of all substations")
        return self

    def pids(self) -> dict[str, int]:
        line = self.until_said(r"pids +(.*)").group(1)
        return {name: int(pid) for name, pid in re.findall(r"(\S+) (\d+)", line)}

    def console(self) -> tuple[str, str, str]:
        return self.until_said(r"RabbitMQ console +(\S+) +login (\S+) / (\S+)").groups()

    def submit(self, count: int, over_s: float = 0.0, accepted: list[str] | None = None, **body: object) -> list[str]:
        """Send requests like clients that try again until they get their 202; returns the ids.

        The requests are spread evenly over `over_s` seconds. `accepted` gets each id at once.
        """
        ids = [] if accepted is None else accepted
        began_at = time.monotonic()

        def one(number: int) -> None:
            time.sleep(max(0.0, began_at + number * over_s / count - time.monotonic()))
            while True:
                try:
                    status, answer = self.post(vehicle_id=f"EV-{number}", **body)
                except OSError:
                    status, answer = 0, {}
                if status == 202:
                    return ids.append(answer["request_id"])
                assert status in (0, 503), answer
                time.sleep(0.2)

        with ThreadPoolExecutor(min(count, 64)) as pool:
            list(pool.map(one, range(count)))
        return ids

    @contextmanager
    def rush(self, count: int, over_s: float, **body: object) -> Iterator["Rush"]:
        """Send requests in the background while the block runs."""
        with ThreadPoolExecutor(1) as pool:
            accepted: list[str] = []
            yield Rush(accepted, pool.submit(self.submit, count, over_s, accepted, **body))

    def listed(self, status: Status) -> set[str]:
        """The newest 500 requests in a state."""
        return {line["request_id"] for line in self._found(f"/charge-requests?status={status}&limit=500")["items"]}

    def _found(self, path: str) -> dict[str, Any]:
        """What lies there; raises `ConnectionError` where the gateway cannot say."""
        status, answer = self.get(path)
        if status != 200:
            raise ConnectionError(answer)
        return answer

    def pages(self, limit: int = 500) -> Iterator[list[dict[str, Any]]]:
        """The list of all requests, page by page."""
        cursor = ""
        while cursor is not None:
            page = self._found(f"/charge-requests?limit={limit}" + (f"&cursor={cursor}" if cursor else ""))
            yield page["items"]
            cursor = page["next_cursor"]

    def count(self) -> int:
        """How many requests there are."""
        return sum(map(len, self.pages()))

    def until_charging(self, request_ids: list[str]) -> None:
        """Wait until all of these charge at the same time."""
        wanted = set(request_ids)
        until(lambda: wanted <= self.listed(Status.CHARGING), f"{len(wanted)} sessions")

    def history(self, request_id: str) -> list[Transition]:
        answer = self._found(f"/charge-requests/{request_id}")
        return [
            Transition(0, Status(line["status"]), line["substation"], line["attempt"], number, line["reason"])
            for number, line in enumerate(answer["history"])
        ]

    def until_ended(self, request_ids: list[str], within_s: float = 120.0) -> None:
        """Wait for every end, then hold each history against the promises."""
        wanted = set(request_ids)

        def have_ended() -> bool:
            return not any(self.listed(one) & wanted for one in OPEN)

        def histories() -> list[list[Transition]] | None:
            # A request that moved from state to state between the lists was seen in none of them.
            found = [self.history(one) for one in request_ids]
            return found if all(one[-1].status in TERMINAL for one in found) else None

        until(have_ended, f"the ends of {request_ids[:2]} and {len(wanted) - 2} more", within_s)
        for history in until(histories, "every end", within_s):
            assert ended_once(history), (faults(history), history)

    def service(self, instance: str) -> psutil.Process | None:
        """The process that bears a name now; None while it is away."""
        for process in self.processes():
            with suppress(psutil.Error, OSError):
                if process.environ().get("EVENLOAD_INSTANCE") == instance:
                    return process
        return None

    def admin_port(self, instance: str) -> int:
        """Where a service tells of its health now."""
        return int(self.service(instance).environ()["EVENLOAD_ADMIN_PORT"])

    def said_by(self, instance: str) -> list[dict[str, Any]]:
        """The lines of a service's log."""
        lines = (self.data / "logs" / f"{instance}.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def processes(self) -> list[psutil.Process]:
        return marked(self.data)

    def wait(self, within_s: float = 60.0) -> int:
        """Wait for its end; returns the exit code."""
        code = self.process.wait(within_s)
        self._reader.join(10)
        self.process.stdout.close()
        return code

    def stop(self, signum: signal.Signals = signal.SIGTERM, within_s: float = 40.0) -> int:
        """Signal it if it still runs, and wait; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.wait(within_s)


class Rush:
    """Requests that are being sent in the background."""

    def __init__(self, accepted: list[str], sending: Future[list[str]]) -> None:
        self._accepted = accepted
        self._sending = sending

    @property
    def is_over(self) -> bool:
        return self._sending.done()

    def until_accepted(self, count: int) -> None:
        """Wait until so many have their 202."""
        until(lambda: len(self._accepted) >= count or self._sending.done(), f"{count} accepted requests")

    def ids(self, within_s: float = 120.0) -> list[str]:
        """Wait until all have their 202; the ids."""
        return self._sending.result(within_s)


def readiness(admin_port: int) -> tuple[int, str]:
    """What `/readyz` answers: status and text; status 0 where nobody does."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/readyz", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def marked(data: Path) -> list[psutil.Process]:
    """Every process that carries the mark of a stack in `data`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(DIR_MARK) == str(data):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def until(condition: Callable[[], Any], what: str, within_s: float = 60.0) -> Any:
    """Wait until a condition holds and return what it gave; a gateway that is away counts as not yet."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            if value := condition():
                return value
        except OSError:
            pass
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.1)


@contextmanager
def started(
    data: Path,
    port: int,
    *,
    command: list[str] | None = None,
    cwd: Path = ROOT,
    errors: Path | None = None,
    **environment: str,
) -> Iterator[Stack]:
    """A stack that is down again at the end, with the logs shown where a test failed."""
    stack = Stack(data.absolute(), port, environment, command or ["make", "run"], cwd, errors)
    try:
        yield stack
    finally:
        stack.stop()
        left = [process.pid for process in stack.processes()]
        assert not left, f"processes left behind: {left}"
