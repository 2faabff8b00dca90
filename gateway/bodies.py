"""Request bodies: read strictly, checked by one model, faults named by field."""

import asyncio
import hashlib
import re
from datetime import MAXYEAR, UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError, TransferEncodingError
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gateway.problems import ClientGone, Problem
from services.errors import InvalidMessage
from services.ledger.records import NewRequest
from services.messages import parse_strict_json

BODY_MAX_BYTES = 16 * 1024
BODY_WITHIN_S = 8.0
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def _only_text(value: object) -> object:
    """A number, or digits as text, would otherwise pass as seconds since the epoch."""
    if not isinstance(value, str) or not _DATE.match(value):
        raise ValueError("must be text with a time and an offset, as RFC 3339 has it")
    return value


def _tellable(value: datetime) -> datetime:
    """In UTC, and rounded, it must still be a year that can be written."""
    if value.year >= MAXYEAR:
        raise ValueError(f"must lie before the year {MAXYEAR}")
    return value


Moment = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_only_text), AfterValidator(_tellable)]
"""A time with an offset, as RFC 3339 has it."""
AnyBody = TypeVar("AnyBody", bound=BaseModel)


class ChargeRequest(BaseModel):
    """What a client asks for; units stand in the names."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    vehicle_id: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$")]
    energy_kwh: Annotated[float, Field(gt=0, le=1_000)] = 10
    max_power_kw: Annotated[float, Field(gt=0, le=1_000)] = 11
    depart_by: Moment | None = None
    zone: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")] | None = None
    priority: Annotated[int, Field(ge=0, le=9)] = 0

    def digest(self) -> str:
        """The same for the same wishes, however the client wrote them (SHA-256, hexadecimal)."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def to_ledger(
        self, request_id: str, *, now: datetime, speed: float, wait_max_s: float, idempotency_key: str | None = None
    ) -> NewRequest:
        """The request in base units; the departure becomes a wall deadline here, once.

        Session time runs `speed` times faster than the wall, so a departure in an hour is `1 h / speed` away.
        Raises `Problem` for a departure that has passed.
        """
        departs_at_ms = None
        if self.depart_by is not None:
            ahead_s = (self.depart_by - now).total_seconds()
            if ahead_s <= 0:
                raise field_problem("depart_by", f"must lie after now, {now.isoformat(timespec='seconds')}")
            departs_at_ms = round((now.timestamp() + ahead_s / speed) * 1000)
        return NewRequest(
            request_id=request_id,
            vehicle_id=self.vehicle_id,
            energy_requested_j=max(1, round(self.energy_kwh * 3_600_000)),
            power_max_w=max(1, round(self.max_power_kw * 1000)),
            priority=self.priority,
            zone=self.zone,
            depart_by_ms=None if self.depart_by is None else round(self.depart_by.timestamp() * 1000),
            departs_at_ms=departs_at_ms,
            wait_max_ms=round(wait_max_s * 1000),
            idempotency_key=idempotency_key,
            body_hash=None if idempotency_key is None else self.digest(),
        )


def read_idempotency_key(request: web.Request) -> str | None:
    """The client's own name for its request, from the `Idempotency-Key` header; raises `Problem` 400."""
    keys = request.headers.getall("Idempotency-Key", [])
    if not keys:
        return None
    if len(keys) > 1 or not IDEMPOTENCY_KEY.fullmatch(keys[0]):
        raise Problem(
            HTTPStatus.BAD_REQUEST, "Idempotency-Key: give one, of 1 to 255 visible ASCII characters without spaces"
        )
    return keys[0]


async def read_json(request: web.Request) -> Any:
    """The body as strict JSON; raises as `read_body`, and `Problem` 415."""
    body = await read_body(request)
    if request.content_type != "application/json":
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"send Content-Type: application/json, not {request.content_type}"
        )
    try:
        return parse_strict_json(body)
    except InvalidMessage as fault:
        raise Problem(HTTPStatus.BAD_REQUEST, f"the body cannot be read: {fault}") from None


async def read_body(request: web.Request) -> bytes:
    """The body, decoded and of bounded size; raises `Problem` 400, 408 or 413, and `ClientGone`."""
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            return await request.read()
    except TimeoutError:
        raise Problem(
            HTTPStatus.REQUEST_TIMEOUT, f"the body did not arrive within {BODY_WITHIN_S:g} s: send all of it at once"
        ) from None
    except ConnectionError:
        raise ClientGone from None
    except (web.RequestPayloadError, ContentEncodingError, TransferEncodingError):
        raise Problem(
            HTTPStatus.BAD_REQUEST,
            "the body is not encoded as Content-Encoding or Transfer-Encoding says: correct the header or the body",
        ) from None
    except web.HTTPRequestEntityTooLarge:
        raise Problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body may have {BODY_MAX_BYTES} bytes at most"
        ) from None


def checked(model: type[AnyBody], body: Any) -> AnyBody:
    """Check a parsed body; raises `Problem` 422 that names each faulty field and the cure."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        faults = [
            {
                "field": ".".join(str(part) for part in fault["loc"]) or "body",
                "detail": str(fault["msg"]).removeprefix("Value error, "),
            }
            for fault in error.errors()
        ]
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "; ".join(f"{fault['field']}: {fault['detail']}" for fault in faults),
            errors=faults,
        ) from None


def field_problem(field: str, detail: str) -> Problem:
    """A 422 for one field."""
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"{field}: {detail}", errors=[{"field": field, "detail": detail}])


def utc_now() -> datetime:
    """The wall clock, for judging departures."""
    return datetime.now(UTC)
