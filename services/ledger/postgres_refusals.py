"""Why PostgreSQL, or what stands before it, refuses us: the cause, its cure, and whether it may pass by itself."""

import os
import re
import select
import time
from dataclasses import dataclass

import psycopg
from psycopg import pq

from services.ledger.postgres_connection import TOO_OLD, VERSION_MIN
from services.ledger.postgres_tls import certificate_fault

FORM = "give postgresql://user:password@host:port/database"
TRACED_FOR_S = 3.0
_CODE = re.compile(r'\tErrorResponse\t.*? C "([0-9A-Z]{5})"')
_OPTION_REFUSED = re.compile(r"connection is bad: (?!connection to server)|could not match|bad value for")
"""How libpq and psycopg begin what they say of the address itself, before they ask any server."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the ledger cannot be used: `{place} {what} ({cause}): {cure}`."""

    what: str
    cause: str
    cure: str
    is_final: bool
    """Waiting will not help."""


_REFUSES, _SILENT = "refuses", "does not answer"
_CODES = {
    "28": ("correct user and password, or let pg_hba.conf admit this user from this host", True),
    "3D000": ("correct the database's name, or make the database with createdb", True),
    "42501": ("GRANT this user CONNECT on the database", True),
    "42704": ("correct the options in the address", True),
    "42": ("name another database", True),
    "22023": ("correct the options in the address", True),
    "0A000": ("this server cannot be written, so name the primary, or all servers as host1:port,host2:port", False),
    "25006": ("this server cannot be written, so name the primary, or all servers as host1:port,host2:port", False),
    "53300": ("no free connection, so raise max_connections, or the limit of the user or the database", False),
    "57P03": ("wait until the server is up", False),
    "55P03": ("wait until the other start has made the tables, or end the session that holds their lock", False),
}
"""Cures by the beginning of the SQLSTATE, and whether the refusal is final; the first that fits."""
_TEXTS = {
    TOO_OLD: (f"use PostgreSQL {VERSION_MIN} or a later version", True),
    "statement pooling": ("set pool_mode to transaction or session in pgbouncer.ini", True),
    "no such database": ("name the database under [databases] in pgbouncer.ini, or correct it in the address", True),
    "no such user": ("name the user in PgBouncer's auth_file, or correct it in the address", True),
    "SASL authentication failed": ("correct user and password in the address and in PgBouncer's auth_file", True),
    "unsupported startup parameter": ("take the parameter out of the address", True),
    "no more connections allowed": ("no free connection at PgBouncer, so raise max_client_conn", False),
    "query_wait_timeout": ("no free connection at PgBouncer, so raise default_pool_size", False),
    "pgbouncer cannot connect": ("start PostgreSQL, or correct its entry under [databases] in pgbouncer.ini", False),
    "server login": ("see PgBouncer's log for why PostgreSQL refuses it", False),
    "no password supplied": ("give a password in the address, or in the file that PGPASSFILE names", True),
    "does not support SSL": ("turn ssl on at the server, or take sslmode out of the address", True),
    "root certificate file": ("let sslrootcert name the file of the CA that signed the server's certificate", True),
    "private key file": ("let sslkey name a key that this user may read and nobody else, by chmod 600", True),
    "certificate file": ("let sslcert name a certificate that this user may read", True),
    "does not match host name": ("name the host as its certificate does, or set sslmode to verify-ca", True),
    "hot standby mode": ("name the primary, or all servers as host1:port,host2:port", False),
    "session is read-only": ("name the primary, or all servers as host1:port,host2:port", False),
}
"""Cures by what libpq and PgBouncer say, who tell no code of their own and always speak English."""

_RULES = ("exec_stmt_raise", "PLy_output", "ExecWithCheckOptions")
"""Functions in the server's source where a RAISE, PL/Python's, and a policy of row-level security refuse a row."""
_RIGHT_MISSING = "42501"
GUARD = "request_refused"
"""The function of our triggers that keep each user to its own states (`provision`)."""
_UNVERIFIED = "certificate verify failed"
_SILENCE = ("timeout expired", "has not answered")
_CURE_OF_SILENCE = "see whether the server is frozen or cut off, or whether a pooler before it waits for a connection"


def explain(error: psycopg.Error, conninfo: str) -> Refusal:
    """What `error` says of the ledger at `conninfo`.

    A server that refuses a connection tells a code, whatever its language. A refusal that we do not know may pass.
    """
    said = told(error)
    for text, (cure, is_final) in _TEXTS.items():
        if text in said:
            return Refusal(_REFUSES, said, cure, is_final)
    if _UNVERIFIED in said:
        fault = certificate_fault(conninfo) or "no more is known"
        cure = "renew the server's certificate" if "expired" in fault else "let sslrootcert name the CA that signed it"
        return Refusal(_REFUSES, f"{said}, {fault}", cure, is_final=True)
    if any(text in said for text in _SILENCE):
        return Refusal(_SILENT, said, _CURE_OF_SILENCE, is_final=False)
    if (isinstance(error, psycopg.ProgrammingError) and not error.sqlstate) or _OPTION_REFUSED.match(str(error)):
        return Refusal("cannot be asked for", said, FORM, is_final=True)
    codes = [error.sqlstate] if error.sqlstate else _codes_told(conninfo)
    for beginning, (cure, is_final) in _CODES.items():
        if codes and all(code.startswith(beginning) for code in codes):
            return Refusal(_REFUSES, said, cure, is_final)
    cure = "see the server's log for why it refuses" if codes else "start PostgreSQL there, or correct host and port"
    return Refusal(_REFUSES if codes else _SILENT, said, cure, is_final=False)


def is_from_rule(error: psycopg.Error) -> bool:
    """Whether a rule of the operator's in the database has raised `error`; its code is then anybody's guess.

    The server names the function of its own source that failed, the same in every language. What our own guard raises
    is about the user's rights.
    """
    is_our_guard = error.sqlstate == _RIGHT_MISSING and f"{GUARD}()" in (error.diag.context or "")
    return error.diag.source_function in _RULES and not is_our_guard


def told(error: psycopg.Error) -> str:
    """The error in one line: what the server or the network said, of each host, and never the row that it is about."""
    if is_from_rule(error):
        return f"a rule of the database raised {error.sqlstate}"
    if error.diag.message_primary:
        return error.diag.message_primary
    lines = [one.strip() for one in str(error).splitlines() if one.strip()]
    attempts = [one for one in lines if one.startswith("- host: ")] or lines[:1]
    said = (one.rpartition("failed: ")[2] for one in attempts)
    return (
        "; ".join(dict.fromkeys(re.sub(r"^(connection is bad: |[A-Z]+: +)", "", one) for one in said))
        or type(error).__name__
    )


def _codes_told(conninfo: str) -> list[str]:
    """Connect once more, and read the codes of all refusals out of libpq's trace: its error does not hold them."""
    with os.fdopen(os.memfd_create("libpq"), "r+", encoding="utf-8", errors="replace") as trace:
        connection = pq.PGconn.connect_start(conninfo.encode())
        try:
            connection.trace(trace.fileno())
            _poll(connection)
            connection.untrace()
        finally:
            connection.finish()
        trace.seek(0)
        return _CODE.findall(trace.read())


def _poll(connection: pq.abc.PGconn) -> None:
    give_up_at = time.monotonic() + TRACED_FOR_S
    while (left_s := give_up_at - time.monotonic()) > 0:
        status = connection.connect_poll()
        if status == pq.PollingStatus.READING:
            select.select([connection.socket], [], [], left_s)
        elif status == pq.PollingStatus.WRITING:
            select.select([], [connection.socket], [], left_s)
        else:
            return
