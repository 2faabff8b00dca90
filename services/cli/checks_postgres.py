"""The doctor's look into a PostgreSQL ledger: one read-only transaction, which makes and changes nothing."""

import contextlib
from collections.abc import Callable

from services.ledger.committer import Answer, Transaction


def place(url: str) -> str:
    """What may be told of an address: host, port and database; raises `Misconfigured` for one that is none."""
    # Here and below, because most ledgers are files, and the doctor starts faster without.
    from services.ledger import postgres_setup

    return postgres_setup.place(postgres_setup.parse_address(url))


def read_meta(url: str) -> dict[str, str] | None:
    """What the ledger says of itself; None where there is none yet.

    Raises `Misconfigured` or `LedgerUnavailable`, each with a text of the form `cause: cure`.
    """
    from services.ledger import postgres_setup

    return postgres_setup.read_meta(postgres_setup.parse_address(url))


def held_substations(url: str) -> list[str]:
    """Ids that some process holds; raises `LedgerUnavailable`."""
    query = "SELECT id FROM substation WHERE left_at_ms IS NULL ORDER BY id"
    return [str(row["id"]) for row in _read(url, lambda it: it.execute(query))]


def _read(url: str, work: Callable[[Transaction], Answer]) -> Answer:
    from services.ledger.postgres import PostgresReader

    with contextlib.closing(PostgresReader(url)) as reader:
        return reader.read(work)
