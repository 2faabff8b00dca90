"""The query of `GET /charge-requests`: checked, with faults named by parameter."""

from dataclasses import dataclass

from aiohttp import web

from gateway.bodies import field_problem
from services.ledger.states import Status
from services.settings import SUBSTATION_ID

LIMIT_DEFAULT = 100
LIMIT_MAX = 500
NEWEST = 2**63 - 1
PARAMETERS = ("status", "substation", "limit", "cursor")


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Which requests to list: arrived before number `before`, at most `limit`."""

    status: Status | None
    substation: str | None
    limit: int
    before: int


def read_list_query(request: web.Request) -> ListQuery:
    """The query of a request; raises `Problem` 422 that names the parameter and the cure."""
    query = request.query
    for name in query:
        if name not in PARAMETERS:
            raise field_problem(name, f"is no parameter here; there are {', '.join(PARAMETERS)}")
    status = query.get("status")
    if status is not None and status not in list(Status):
        raise field_problem("status", f"must be one of {', '.join(Status)}")
    substation = query.get("substation")
    if substation is not None and not SUBSTATION_ID.match(substation):
        raise field_problem("substation", "must be a substation's id")
    return ListQuery(
        None if status is None else Status(status),
        substation,
        _number(query.get("limit"), "limit", LIMIT_DEFAULT, LIMIT_MAX),
        _number(query.get("cursor"), "cursor", NEWEST, NEWEST),
    )


def _number(text: str | None, name: str, default: int, most: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and 1 <= int(text) <= most):
        cure = "use the next_cursor of the page before" if name == "cursor" else f"must be a number from 1 to {most}"
        raise field_problem(name, cure)
    return int(text)
