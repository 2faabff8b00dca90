"""What SQLite and PostgreSQL say differently: the holes in the statements, and how each database fills them.

`{now}` is the database's clock [ms since the epoch]; `{rows: a, b}` the rows of one JSON parameter (an array of arrays)
as a table with the named columns, `{left out: id}` those of another; `{for update}` locks what is found; `{written}`
makes the commit wait as one that has changed something; `{spared}` is nothing, unless requests are left out
(`sparing`).
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

ROWS = re.compile(r"\{(rows|left out):([^}]*)\}")
SPARED = "{spared}"
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
        "usable",
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
    rows: Callable[[str, tuple[str, ...]], str]
    """The rows of the JSON parameter of that name, with these columns."""
    for_update: str
    written: str
    parameter: str
    """How the parameter `\\1` is written."""


@functools.cache
def render(statement: str, dialect: Dialect) -> str:
    """`statement` with the dialect's own expressions in its holes."""

    def fill(match: re.Match[str]) -> str:
        parameter, columns = match.groups()
        names = tuple(column.strip() for column in columns.split(","))
        return dialect.rows(parameter.replace(" ", "_"), names)

    filled = ROWS.sub(fill, statement.replace(SPARED, ""))
    for hole, words in (("now", dialect.now_ms), ("for update", dialect.for_update), ("written", dialect.written)):
        filled = filled.replace(f"{{{hole}}}", words)
    return _PARAMETER.sub(dialect.parameter, filled)
