"""The doctor's look into a PostgreSQL ledger: one transaction, which makes and changes nothing."""

from typing import LiteralString

from services.ledger.committer import Row


def place(url: str) -> str:
    """What may be told of an address: host, port and database; raises `Misconfigured` for one that is none."""
    # Here and below, because most ledgers are files, and the doctor starts faster without.
    from services.ledger import postgres_setup

    return postgres_setup.place(postgres_setup.parse_address(url))


def read_meta(url: str) -> dict[str, str] | None:
    """What the ledger says of itself; None where there is none yet. Raises as `postgres_setup.look`."""
    rows = _look(url, "SELECT name, value FROM meta")
    return None if rows is None else {str(row["name"]): str(row["value"]) for row in rows}


def disk_fault(url: str) -> tuple[str, str] | None:
    """The cause and the cure where the server does not wait for its disk; raises as `postgres_setup.look`."""
    from services.ledger import postgres_soundness

    return postgres_soundness.NOT_SYNCED if _look(url, "SHOW fsync") == [{"fsync": "off"}] else None


def held_substations(url: str) -> list[str]:
    """Ids that some process holds; raises as `postgres_setup.look`."""
    rows = _look(url, "SELECT id FROM substation WHERE left_at_ms IS NULL ORDER BY id")
    return [str(row["id"]) for row in rows or ()]


def _look(url: str, query: LiteralString) -> list[Row] | None:
    from services.ledger import postgres_setup

    return postgres_setup.look(postgres_setup.parse_address(url), query)
