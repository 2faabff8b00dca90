"""Reads PostgreSQL's address, waits for the server, and makes the ledger's tables or refuses what is not ours."""

import contextlib
import time

import psycopg
from psycopg import errors, pq

from services.errors import Misconfigured
from services.ledger import schema
from services.ledger.committer import Row
from services.ledger.postgres import CONNECT_TIMEOUT_S, connect, told

POLL_S = 0.2
FORM = "give postgresql://user:password@host:port/database"
_MAKING = 0x65_76_65_6E
"""Key of the advisory lock under which one process makes the tables."""

_FOREIGN = """
SELECT c.relname FROM pg_class AS c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'f')
  AND NOT EXISTS (SELECT 1 FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'e')
LIMIT 1
"""


def parse_address(url: str) -> str:
    """The address, checked; raises `Misconfigured`, which never repeats it: it holds a password."""
    try:
        given = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        raise Misconfigured(f"EVENLOAD_LEDGER_URL is no PostgreSQL address: {FORM}") from None
    port = str(given.get("port", "5432"))
    if not given.get("host") or not given.get("user") or not given.get("dbname"):
        raise Misconfigured(f"EVENLOAD_LEDGER_URL lacks a user, a host or a database: {FORM}")
    if not (port.isdecimal() and 1 <= int(port) <= 65_535):
        raise Misconfigured(f"EVENLOAD_LEDGER_URL: {port!r} is no port: {FORM}")
    return url


def place(address: str) -> str:
    """What may be told of an address: host, port and database."""
    given = psycopg.conninfo.conninfo_to_dict(address)
    return f"{given['host']}:{given.get('port', 5432)}/{given['dbname']}"


def prepare(address: str, give_up_after_s: float) -> None:
    """Make the ledger's tables where the database is empty, and refuse one that is not ours, untouched.

    A server that does not answer yet is waited for. Raises `Misconfigured` with the cause and the cure.
    """
    where = place(address)
    with contextlib.closing(_connected(address, where, give_up_after_s)) as connection:
        try:
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", [_MAKING])
                _make_or_refuse(connection, where)
        except errors.InsufficientPrivilege as error:
            raise Misconfigured(
                f"EVENLOAD_LEDGER_URL: {where} has no ledger that this user may use ({told(error)}): "
                "set it up with `python -m services.ledger.provision`, or name the database's owner"
            ) from None
        except psycopg.Error as error:
            raise Misconfigured(
                f"EVENLOAD_LEDGER_URL: {where} is no usable ledger ({told(error)}): name another database"
            ) from None


def _connected(address: str, where: str, give_up_after_s: float) -> psycopg.Connection[Row]:
    """Wait for a server; one that answers and refuses will go on refusing."""
    give_up_at = time.monotonic() + give_up_after_s
    asked = psycopg.conninfo.make_conninfo(address, connect_timeout=CONNECT_TIMEOUT_S).encode()
    while True:
        answers = pq.PGconn.ping(asked) == pq.Ping.OK
        try:
            return connect(address)
        except psycopg.Error as error:
            if answers:
                raise Misconfigured(
                    f"EVENLOAD_LEDGER_URL: {where} refuses ({_reason(error)}): correct user, password and database"
                ) from None
            if time.monotonic() > give_up_at:
                raise Misconfigured(
                    f"EVENLOAD_LEDGER_URL: {where} does not answer ({_reason(error)}): start PostgreSQL there, "
                    "or correct host and port"
                ) from None
        time.sleep(POLL_S)


def _reason(error: psycopg.Error) -> str:
    """What the server, or the network, said; the address before it says nothing new."""
    return str(error).strip().partition("\n")[0].rpartition("failed: ")[2]


def _make_or_refuse(connection: psycopg.Connection[Row], where: str) -> None:
    if _has_table(connection, "meta"):
        schema.refuse_other_version(where, _version(connection), "database")
    elif connection.execute(_FOREIGN).fetchone():
        schema.refuse_other_version(where, None, "database")
    else:
        for statement in schema.POSTGRES:
            connection.execute(statement)


def _has_table(connection: psycopg.Connection[Row], name: str) -> bool:
    found = connection.execute("SELECT to_regclass(%s) IS NOT NULL AS found", [f"public.{name}"]).fetchone()
    return found is not None and bool(found["found"])


def _version(connection: psycopg.Connection[Row]) -> str | None:
    """The schema's version; None for a table of that name that is somebody else's."""
    try:
        with connection.transaction():
            row = connection.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone()
    except errors.UndefinedColumn:
        return None
    return str(row["value"]) if row else None
