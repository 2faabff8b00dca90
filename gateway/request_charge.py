"""`POST /request_charge`: the route of the original system, so that its own load script runs unchanged."""

import uuid
from dataclasses import dataclass

from aiohttp import web

from gateway.bodies import ChargeRequest, checked, read_body, read_json
from gateway.charge_requests import ChargeRequestRoutes


@dataclass(frozen=True)
class RequestChargeRoute:
    """Answers 200 instead of 202, and needs no body: then it asks for the defaults."""

    requests: ChargeRequestRoutes

    async def post(self, request: web.Request) -> web.Response:
        """Accept a request; an anonymous vehicle gets a name."""
        asked = await self._asked(request)
        accepted = await self.requests.accept(asked)
        location = f"/charge-requests/{accepted.request_id}"
        return web.json_response(
            {"status": "accepted", "request_id": accepted.request_id, "location": location},
            headers={"Location": location},
        )

    async def _asked(self, request: web.Request) -> ChargeRequest:
        anonymous = {"vehicle_id": f"EV-{uuid.uuid4().hex[:8]}"}
        if not await read_body(request):
            return checked(ChargeRequest, anonymous)
        body = await read_json(request)
        return checked(ChargeRequest, {**anonymous, **body} if isinstance(body, dict) else body)
