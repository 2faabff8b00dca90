"""`/charge-requests`: take one in, tell what became of one."""

import uuid
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp import web

from gateway.bodies import ChargeRequest, checked, read_idempotency_key, read_json, utc_now
from gateway.intake import IntakeQueue
from gateway.listing import read_list_query
from gateway.problems import Problem
from gateway.waits import WaitForecast
from services.ledger.intake import Intake
from services.ledger.records import Accepted, ListedRequest, RequestRecord
from services.ledger.states import Status
from services.timestamps import rfc3339

JOULES_PER_KWH = 3_600_000


@dataclass(frozen=True)
class ChargeRequestRoutes:
    """The handlers of `/charge-requests`."""

    ledger: Intake
    intake: IntakeQueue
    waits: WaitForecast
    speed: float
    wait_max_s: float

    async def post(self, request: web.Request) -> web.Response:
        """202 with `Location` once the request is durable."""
        key = read_idempotency_key(request)
        asked = checked(ChargeRequest, await read_json(request))
        accepted = await self.accept(asked, key)
        if key is not None and accepted.body_hash != asked.digest():
            raise Problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"Idempotency-Key: {key[:64]!r} was used for another body; use a new key for a new request",
            )
        location = f"/charge-requests/{accepted.request_id}"
        return web.json_response(
            {
                "request_id": accepted.request_id,
                "status": "accepted",
                "accepted_at": rfc3339(accepted.accepted_at_ms),
                "wait_until": rfc3339(accepted.wait_until_ms),
                "location": location,
            },
            status=HTTPStatus.ACCEPTED,
            headers={"Location": location},
        )

    async def get(self, request: web.Request) -> web.Response:
        """The request with its history and the reason for its substation."""
        request_id = request.match_info["request_id"]
        record = await self.ledger.request(request_id) if request_id.isprintable() else None
        if record is None:
            raise Problem(HTTPStatus.NOT_FOUND, f"there is no charge request {request_id[:64]!r}")
        wait_s = None if record.position is None else await self.waits.expected_s(request_id)
        return web.json_response(describe(record, wait_s))

    async def delete(self, request: web.Request) -> web.Response:
        """200 for what waited and is ended now, or had ended; 202 for what charges, and stops within a heartbeat."""
        request_id = request.match_info["request_id"]
        status = await self.ledger.withdraw(request_id) if request_id.isprintable() else None
        if status is None:
            raise Problem(HTTPStatus.NOT_FOUND, f"there is no charge request {request_id[:64]!r}")
        return web.json_response(
            {"request_id": request_id, "status": status},
            status=HTTPStatus.ACCEPTED if status is Status.CHARGING else HTTPStatus.OK,
        )

    async def get_all(self, request: web.Request) -> web.Response:
        """Requests, newest first, a page at a time."""
        query = read_list_query(request)
        lines = await self.ledger.listed(
            before=query.before, most=query.limit + 1, status=query.status, substation=query.substation
        )
        shown = lines[: query.limit]
        return web.json_response(
            {
                "items": [describe_line(line) for line in shown],
                "next_cursor": str(shown[-1].arrival) if len(lines) > query.limit else None,
            }
        )

    async def accept(self, asked: ChargeRequest, idempotency_key: str | None = None) -> Accepted:
        """Write a checked request into the ledger under a new id, unless its key has one already."""
        new = asked.to_ledger(
            str(uuid.uuid4()),
            now=utc_now(),
            speed=self.speed,
            wait_max_s=self.wait_max_s,
            idempotency_key=idempotency_key,
        )
        return await self.intake.accept(new)


def describe_line(line: ListedRequest) -> dict[str, Any]:
    """A line of the list in the API's words and units."""
    return {
        "request_id": line.request_id,
        "vehicle_id": line.vehicle_id,
        "status": line.status,
        "substation": line.substation,
        "attempt": line.attempt,
        "energy_requested_kwh": line.energy_requested_j / JOULES_PER_KWH,
        "energy_delivered_kwh": line.energy_delivered_j / JOULES_PER_KWH,
        "accepted_at": rfc3339(line.accepted_at_ms),
    }


def describe(record: RequestRecord, expected_wait_s: float | None) -> dict[str, Any]:
    """A ledger record in the API's words and units."""
    return {
        "request_id": record.request_id,
        "vehicle_id": record.vehicle_id,
        "status": record.status,
        "substation": record.substation,
        "attempt": record.attempt,
        "priority": record.priority,
        "zone": record.zone,
        "max_power_kw": record.power_max_w / 1000,
        "energy_requested_kwh": record.energy_requested_j / JOULES_PER_KWH,
        "energy_delivered_kwh": record.energy_delivered_j / JOULES_PER_KWH,
        "depart_by": None if record.depart_by_ms is None else rfc3339(record.depart_by_ms),
        "wait_until": rfc3339(record.wait_until_ms),
        "position": record.position,
        "expected_wait_s": None if expected_wait_s is None else round(expected_wait_s, 1),
        "history": [
            {
                "at": rfc3339(line.at_ms),
                "status": line.status,
                "substation": line.substation,
                "attempt": line.attempt,
                "reason": line.reason,
            }
            for line in record.history
        ],
        "decision": record.decision,
    }
