"""What SQLite and PostgreSQL say differently: the holes in the statements, and how each database fills them.

`{now}` is the database's clock [ms since the epoch]; `{rows: a, b}` the rows of one JSON parameter (an array of arrays)
as a table with the named columns; `{for update}` locks what is found.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

ROWS = re.compile(r"\{rows:([^}]*)\}")
_PARAMETER = re.compile(r"(?<!:):([a-z_]+)")

INTEGER_COLUMNS = frozenset(
    {
        "attempt",
        "bays",
        "claims_total",
        "connectors",
        "delivered",
        "depart_by_ms",
        "departs_at_ms",
        "ends_total",
        "energy_requested_j",
        "epoch",
        "forfeit",
        "grant_s",
        "limit_w",
        "number",
        "operative",
        "places",
        "power_max_w",
        "priority",
        "rated_w",
        "released",
        "renewals",
        "stands_in_bay",
        "total",
        "until_ms",
        "wait_max_ms",
        "wanted",
    }
)
"""The columns of `{rows: …}` that hold integers; all others hold text."""


@dataclass(frozen=True)
class Dialect:
    """How one database says what the two do not share."""

    now_ms: str
    rows: Callable[[tuple[str, ...]], str]
    for_update: str
    parameter: str
    """How the parameter `\\1` is written."""


@functools.cache
def render(statement: str, dialect: Dialect) -> str:
    """`statement` with the dialect's own expressions in its holes."""

    def fill(match: re.Match[str]) -> str:
        return dialect.rows(tuple(column.strip() for column in match.group(1).split(",")))

    filled = ROWS.sub(fill, statement).replace("{now}", dialect.now_ms).replace("{for update}", dialect.for_update)
    return _PARAMETER.sub(dialect.parameter, filled)
