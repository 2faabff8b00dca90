"""Follows each accepted request to its end, beside the load and over HTTP only.

Not to be run by itself: `locust -f locustfiles` leaves files out whose names begin with an underscore.
"""

import json
import logging
import time
from dataclasses import dataclass, field
from datetime import datetime

import gevent
from _distribution import Distribution
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError
from locust.log import greenlet_exception_logger
from locust.stats import RequestStats

E2E = "E2E"
TO_CHARGING = "accepted → charging"
TO_END = "accepted → ended"

ROUND_S = 1.0
TOLD_EVERY_S = 10.0
FIRST_ASKED_AFTER_S = 8.0
ASKED_EVERY_S_MAX = 64.0
PAGE = 500
ANSWER_WITHIN_S = 10.0
GOOD_ENDS = ("completed", "stopped")
ENDS = (*GOOD_ENDS, "cancelled", "expired", "failed")

log = logging.getLogger(__name__)


class NotTold(OSError):
    """An answer came, but not the one that was asked for."""


@dataclass
class _Open:
    """A request that has not ended, as far as was seen."""

    request_id: str
    accepted_at: float = field(default_factory=time.monotonic)
    is_charging: bool = False
    has_charged: bool = False
    waits_s: float = FIRST_ASKED_AFTER_S
    ask_at: float = 0.0

    def __post_init__(self) -> None:
        self.ask_at = self.accepted_at + self.waits_s

    def put_off(self) -> None:
        """Ask again after twice as long."""
        self.waits_s = min(2 * self.waits_s, ASKED_EVERY_S_MAX)
        self.ask_at = time.monotonic() + self.waits_s


class Gateway:
    """Reads JSON from the gateway, one answer at a time, on one connection, outside locust's statistics."""

    def __init__(self, host: str) -> None:
        self._http = HTTPClient.from_url(host, connection_timeout=ANSWER_WITHIN_S, network_timeout=ANSWER_WITHIN_S)
        self.answers = 0
        self.waited_s = 0.0

    def read(self, path: str) -> dict:
        """Raises `OSError` where no answer comes, `NotTold` where it is another than 200 with JSON."""
        started = time.monotonic()
        try:
            response = self._http.get(path)
            body = response.read()
        except HTTPParseError as error:
            raise OSError(str(error)) from error
        finally:
            self.answers += 1
            self.waited_s += time.monotonic() - started
        if response.status_code != 200:
            raise NotTold(f"{response.status_code} for {path}")
        try:
            return json.loads(body)
        except ValueError:
            raise NotTold(f"no JSON for {path}") from None

    def substations(self) -> list[str]:
        return [item["substation"] for item in self.read("/substations")["items"]]

    def charging(self) -> set[str]:
        """The ids of all requests that charge now."""
        ids: set[str] = set()
        cursor = ""
        while True:
            page = self.read(f"/charge-requests?status=charging&limit={PAGE}{cursor}")
            ids.update(item["request_id"] for item in page["items"])
            if page["next_cursor"] is None:
                return ids
            cursor = f"&cursor={page['next_cursor']}"


class Follower:
    """Follows the requests of one run.

    One list a second tells which requests charge. One whose place in it has changed is asked for by its id, and one
    that still waits after 8 s, then after 16, 32 and each 64 s more. So who need not wait is asked for twice, which
    costs a gateway less than to take it in, and the times are the ledger's own, however late they are read. One that
    cannot be read is put off in the same way, and holds up none of the others; a gateway that does not answer at all
    ends the round, or it would cost a timeout for each.

    What is measured stands beside the HTTP requests, but not in their sum: its percentiles would mean nothing.
    """

    def __init__(self, stats: RequestStats, gateway: Gateway, distribution: Distribution, end_within_s: float) -> None:
        self._stats = stats
        self._gateway = gateway
        self._end_within_s = end_within_s
        self._open: dict[str, _Open] = {}
        self._taken = 0
        self._give_up_at: float | None = None
        self._told_at = time.monotonic()
        self.distribution = distribution
        self.unended = 0
        """Requests that were given up."""
        self.greenlet = gevent.spawn(self._run)
        self.greenlet.link_exception(greenlet_exception_logger(log))

    def take(self, request_id: str) -> None:
        """Follow a request that was answered with 202 just now."""
        self._taken += 1
        self._open[request_id] = _Open(request_id)

    def expect_no_more(self) -> None:
        """The load has stopped: the open requests have so many seconds left."""
        if self._give_up_at is None:
            self._give_up_at = time.monotonic() + self._end_within_s
            if self._open:
                log.info("%d requests are still to end, within %g s", len(self._open), self._end_within_s)

    @property
    def is_over(self) -> bool:
        return self.greenlet.ready()

    def close(self) -> None:
        """Stop following; what is open counts as not ended."""
        self.greenlet.kill()
        for request in self._open.values():
            self.unended += 1
            elapsed_s = time.monotonic() - request.accepted_at
            self._record(TO_END, elapsed_s * 1000, "was not seen to end in time")
        self._open.clear()

    def _run(self) -> None:
        while not self._is_enough():
            started = time.monotonic()
            try:
                self._round()
            except OSError as error:
                log.debug("asked again in the next round: %s", error)
            if started - self._told_at > TOLD_EVERY_S:
                self._told_at = started
                log.info("%d of %d accepted requests have ended", self._taken - len(self._open), self._taken)
            gevent.sleep(max(0.0, started + ROUND_S - time.monotonic()))
        log.info(
            "%d of %d accepted requests have ended; following them took %d answers, %.1f ms each",
            self._taken - len(self._open),
            self._taken,
            self._gateway.answers,
            1000 * self._gateway.waited_s / max(1, self._gateway.answers),
        )

    def _is_enough(self) -> bool:
        return self._give_up_at is not None and (not self._open or time.monotonic() > self._give_up_at)

    def _round(self) -> None:
        charging = self._gateway.charging() if self._open else set()
        for request in list(self._open.values()):
            is_listed = request.request_id in charging
            if is_listed != request.is_charging or time.monotonic() > request.ask_at:
                # Before it is asked: whatever comes of it, the next round begins with the others.
                request.is_charging = is_listed
                request.put_off()
                try:
                    self._ask(request)
                except NotTold as error:
                    log.debug("put off: %s", error)
            if self._is_enough():
                return

    def _ask(self, request: _Open) -> None:
        answer = self._gateway.read(f"/charge-requests/{request.request_id}")
        status, history = answer["status"], answer["history"]
        accepted_at = datetime.fromisoformat(history[0]["at"])

        def elapsed_ms(line: dict) -> float:
            return (datetime.fromisoformat(line["at"]) - accepted_at).total_seconds() * 1000

        first = next((line for line in history if line["status"] == "charging"), None)
        if first is not None and not request.has_charged:
            request.has_charged = True
            self.distribution.count(first["substation"])
            self._record(TO_CHARGING, elapsed_ms(first))
        if status in ENDS:
            del self._open[request.request_id]
            fault = None if status in GOOD_ENDS else f"{status}: {history[-1]['reason']}"
            self._record(TO_END, elapsed_ms(history[-1]), fault)
            return
        request.is_charging = status == "charging"
        if request.is_charging:
            request.ask_at = float("inf")

    def _record(self, name: str, elapsed_ms: float, fault: str | None = None) -> None:
        self._stats.get(name, E2E).log(round(elapsed_ms), 0)
        if fault is not None:
            self._stats.log_error(E2E, name, fault)
