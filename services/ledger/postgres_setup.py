"""Reads PostgreSQL's address, waits for the server, and makes the ledger's tables or refuses what is not ours."""

import contextlib
import re
import time
from typing import LiteralString, NoReturn

import psycopg
from psycopg import errors, pq

from services.broker_address import lacks_brackets
from services.errors import LedgerUnavailable, Misconfigured
from services.ledger import postgres_soundness, schema
from services.ledger.committer import Row
from services.ledger.postgres import BEGIN_WRITING
from services.ledger.postgres_connection import Connection, connect, conninfo, ignore_variables
from services.ledger.postgres_refusals import FORM, Refusal, explain, told
from services.logs import get_logger

log = get_logger(__name__)

POLL_S = 0.2
PERCENT_ENCODE = (
    "percent-encode `#`, `/`, `?`, `@` and `%` in user and password, as `%23`, `%2F`, `%3F`, `%40` and `%25`"
)
BRACKETS = "write it like postgresql://user:password@[::1]:5432/database"
_NO_FOLDER_OF_SOCKETS = "/dev/null/none"
_PORT = 5432
_SECRET_PARAMETER = re.compile(r"password=([^&]*)")
_PIECE_MIN = 4
"""A shorter part of a password may stand in libpq's words by chance."""
_MAKING = 0x65_76_65_6E
"""Key of the advisory lock under which one process makes the tables."""

_FOREIGN = """
SELECT c.relname FROM pg_class AS c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'f')
  AND NOT EXISTS (SELECT 1 FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'e')
LIMIT 1
"""
_VERSION = """
SELECT NOT EXISTS (SELECT 1 FROM meta) AS is_empty,
       (SELECT value FROM meta WHERE name = 'schema_version') AS version
"""


def parse_address(url: str) -> str:
    """The address, which libpq can read; raises `Misconfigured`, which never repeats a password.

    Call it before other threads connect: it takes variables out of the environment that no address could overrule.
    """
    ignore_variables()
    authority, _, path = url.partition("://")[2].partition("?")[0].partition("/")
    if "@" in authority.partition("@")[2] or (":" in authority and "@" not in authority and "@" in path):
        raise Misconfigured(f"EVENLOAD_LEDGER_URL holds a sign that ends its password too early: {PERCENT_ENCODE}")
    if any(map(lacks_brackets, authority.rpartition("@")[2].split(","))):
        raise Misconfigured(f"EVENLOAD_LEDGER_URL has an IPv6 address without brackets: {BRACKETS}")
    said = _fault_of(url)
    if said is not None:
        cure = "write a blank as `%20`" if "spaces" in said else PERCENT_ENCODE if "percent" in said else FORM
        raise Misconfigured(f"EVENLOAD_LEDGER_URL cannot be used ({_without_secrets(said, url)}): {cure}")
    return url


def _fault_of(url: str) -> str | None:
    """What libpq has against the address itself; None where it would now ask the server, which it does not do here."""
    try:
        given = psycopg.conninfo.conninfo_to_dict(url)
        hosts = str(given.get("host") or given.get("hostaddr") or "").count(",") + 1
        nowhere = ",".join([_NO_FOLDER_OF_SOCKETS] * hosts)
        asked = psycopg.conninfo.make_conninfo(conninfo(url), host=nowhere, hostaddr="")
    except psycopg.Error as error:
        return str(error).strip()
    connection = pq.PGconn.connect_start(asked.encode())
    said = connection.get_error_message().strip()
    connection.finish()
    return None if said.startswith("connection to server") else said


def _without_secrets(said: str, url: str) -> str:
    """What libpq said, without what it quotes where that may be part of a password."""
    rest = url.partition("://")[2]
    secret = rest.rpartition("@")[0].partition(":")[2] + "".join(_SECRET_PARAMETER.findall(rest))
    pieces = [one for one in re.split("[:@/?#&=]", secret) if len(one) >= _PIECE_MIN]
    quoted = said.partition('"')[2].rpartition('"')[0]
    is_secret = "://" in quoted or (quoted and quoted in secret) or any(one in quoted for one in pieces)
    return said.partition('"')[0].rstrip(" :") if is_secret else said


def place(address: str) -> str:
    """What may be told of an address: host, port and database."""
    given = psycopg.conninfo.conninfo_to_dict(address)
    if given.get("service"):
        return f"service {given['service']}"
    defaults = {one.keyword.decode(): one.val.decode() for one in pq.Conninfo.get_defaults() if one.val is not None}
    known = {**defaults, **given}
    hosts = str(known.get("host") or known.get("hostaddr") or "the local socket").split(",")
    ports = str(known["port"]).split(",")
    servers = (f"{host}:{port or _PORT}" for host, port in zip(hosts, ports * (len(hosts) // len(ports)), strict=True))
    return f"{','.join(servers)}/{known.get('dbname') or known.get('user', '')}"


def prepare(address: str, give_up_after_s: float) -> None:
    """Make the ledger's tables where the database is empty, and refuse one that is not ours, untouched.

    A server that does not answer yet, or has no free connection, is waited for. Raises `Misconfigured` with the cause
    and the cure.
    """
    where = place(address)
    give_up_at = time.monotonic() + give_up_after_s
    while True:
        try:
            with contextlib.closing(connect(address)) as connection:
                connection.begin(BEGIN_WRITING)
                connection.execute("SELECT pg_advisory_xact_lock(%s)", [_MAKING])
                _refuse_unfit(connection, where)
                _make_or_refuse(connection, where)
                _refuse_unsound(connection, where)
                connection.execute("COMMIT")
                if connection.execute("SHOW fsync").fetchone() == {"fsync": "off"}:
                    cause, cure = postgres_soundness.NOT_SYNCED
                    log.warning("ledger_not_synced", cause=f"{where} {cause}", cure=cure)
            return
        except errors.InsufficientPrivilege as error:
            raise Misconfigured(
                f"EVENLOAD_LEDGER_URL: {where} has no ledger that this user may use ({told(error)}): "
                "set it up with `python -m services.ledger.provision`, or name the database's owner"
            ) from None
        except psycopg.Error as error:
            refusal = explain(error, conninfo(address))
            if refusal.is_final or time.monotonic() > give_up_at:
                raise Misconfigured(_line(where, refusal)) from None
        time.sleep(POLL_S)


def look(address: str, query: LiteralString) -> list[Row] | None:
    """The rows of a query, asked at once and without a change; None where there is no ledger yet.

    Raises `Misconfigured` where a start would be refused, and `LedgerUnavailable` for what may pass, each with a cure.
    """
    where = place(address)
    try:
        with contextlib.closing(connect(address)) as connection:
            connection.begin(BEGIN_WRITING)  # a standby would refuse
            _refuse_unfit(connection, where)
            if not _has_table(connection, "meta"):
                return None
            if _version(connection, where) == str(schema.VERSION):
                _refuse_unsound(connection, where)
            return connection.execute(query).fetchall()
    except psycopg.Error as error:
        refusal = explain(error, conninfo(address))
        raise (Misconfigured if refusal.is_final else LedgerUnavailable)(_line(where, refusal)) from None


def _line(where: str, refusal: Refusal) -> str:
    return f"EVENLOAD_LEDGER_URL: {where} {refusal.what} ({refusal.cause}): {refusal.cure}"


def _refuse_unfit(connection: Connection, where: str) -> None:
    """Raise `Misconfigured` for a database that could not hold every text, or would keep no history."""
    found = connection.execute(
        "SELECT current_setting('server_encoding') AS encoding, current_setting('session_replication_role') AS role"
    ).fetchone()
    if found and found["encoding"] != "UTF8":
        _refuse(
            where,
            f"has the encoding {found['encoding']}, which cannot hold every text",
            "make the database with `createdb -T template0 -E UTF8`",
        )
    if found and found["role"] == "replica":
        _refuse(where, *postgres_soundness.MUTE)


def _refuse_unsound(connection: Connection, where: str) -> None:
    """Raise `Misconfigured` for a ledger that would not keep what it is given."""
    query: LiteralString = "SELECT " + postgres_soundness.COLUMNS
    found = connection.execute(query).fetchone()
    if found and (fault := postgres_soundness.fault(found)):
        _refuse(where, *fault)


def _refuse(where: str, cause: str, cure: str) -> NoReturn:
    raise Misconfigured(f"EVENLOAD_LEDGER_URL: {where} {cause}: {cure}")


def _make_or_refuse(connection: Connection, where: str) -> None:
    if _has_table(connection, "meta"):
        schema.refuse_other_version(where, _version(connection, where), "database")
    elif connection.execute(_FOREIGN).fetchone():
        schema.refuse_other_version(where, None, "database")
    else:
        for statement in schema.POSTGRES:
            connection.execute(statement)


def _has_table(connection: Connection, name: str) -> bool:
    found = connection.execute("SELECT to_regclass(%s) IS NOT NULL AS found", [f"public.{name}"]).fetchone()
    return found is not None and bool(found["found"])


def _version(connection: Connection, where: str) -> str | None:
    """The schema's version; None for a table of that name that is somebody else's.

    Raises `Misconfigured` where the table is ours and empty: a restore makes all tables before it fills one.
    """
    try:
        with connection.transaction():
            found = connection.execute(_VERSION).fetchone()
    except errors.UndefinedColumn:
        return None
    if found and found["is_empty"] and _has_table(connection, "probe"):
        _refuse(where, *postgres_soundness.EMPTY)
    return str(found["version"]) if found and found["version"] else None
