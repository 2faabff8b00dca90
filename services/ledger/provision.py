"""PostgreSQL's users and what each may do, as data; `python -m services.ledger.provision` prints the SQL for it.

The owner of the database runs that SQL once, and again after an upgrade or for another password.
"""

import base64
import hashlib
import hmac
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from services.errors import Misconfigured
from services.ledger import schema, statements
from services.ledger.states import Status

PREFIX = "evenload_"
TABLES = ("meta", "probe", "request", "transition", "substation")
SCRAM_ROUNDS = 4096

ACCEPTED, ASSIGNED, CHARGING = Status.ACCEPTED, Status.ASSIGNED, Status.CHARGING


@dataclass(frozen=True)
class Role:
    """What one kind of service may write; everybody may read everything, and agree on the speed."""

    moves_to: tuple[Status, ...]
    """The states that it may bring a request into; one that a request is in already is no move."""
    updates: Mapping[str, tuple[str, ...]]
    """Columns by table; a lock on a row needs the right to update one of them."""
    inserts: Mapping[str, tuple[str, ...]]
    deletes: tuple[str, ...] = ()


_REGISTERED = ("id", "zone", "rated_w", "limit_w", "connectors", "bays", "metrics_url")
_ACCEPTED = (*statements.ACCEPT_COLUMNS, "accepted_at_ms", "wait_until_ms", "changed_at_ms", "status", "reason")
_LEASE = ("epoch", "holder", "released", "heir", "left_at_ms")
_INTERRUPTED = ("energy_delivered_j", "energy_granted_j", "interruptions", "wait_until_ms", "bay_epoch")

ROLES: Mapping[str, Role] = {
    "gateway": Role(
        moves_to=(ACCEPTED, Status.CANCELLED, Status.STOPPED),
        updates={
            "request": ("status", "reason", "changed_at_ms", "stop_asked"),
            "substation": ("order_number", "operative", "asked_limit_w", "asked_until_ms", "asked_at_ms"),
        },
        inserts={"request": _ACCEPTED},
    ),
    "balancer": Role(
        moves_to=(ACCEPTED, ASSIGNED, Status.EXPIRED, Status.COMPLETED, Status.STOPPED, Status.FAILED),
        updates={
            "request": ("status", "reason", "changed_at_ms", "attempt", "substation", "decision", *_INTERRUPTED),
            "substation": _LEASE,
        },
        inserts={},
        deletes=("request", "transition"),
    ),
    "substation": Role(
        moves_to=(ACCEPTED, CHARGING, Status.COMPLETED, Status.STOPPED, Status.FAILED),
        updates={
            "request": (
                *("status", "reason", "changed_at_ms", "substation", "epoch", "claimed_at_ms"),
                *("claim_number", "end_number", *_INTERRUPTED),
            ),
            "substation": (
                *(*_REGISTERED[1:], *_LEASE, "renewals", "claims_total", "ends_total"),
                *("applied_number", "applied_operative", "applied_limit_w", "applied_at_ms"),
            ),
        },
        inserts={"substation": (*_REGISTERED, "holder")},
    ),
}


def provision(passwords: Mapping[str, str]) -> str:
    """The SQL that sets up tables and the users that are the keys of `passwords`, each a name in `ROLES`.

    Raises `Misconfigured` for another name, and for a password that PostgreSQL and its clients could read differently.
    """
    for name, password in passwords.items():
        if name not in ROLES:
            raise Misconfigured(f"{name!r} is no role: there are {', '.join(ROLES)}")
        if not password or not (password.isascii() and password.isprintable()):
            raise Misconfigured(f"the password of {name} must be of one or more printable ASCII characters")
    return "\n".join(["BEGIN;", *_tables(), *_guard(), *(line for one in passwords.items() for line in _user(*one)),
                      "COMMIT;", ""])  # fmt: skip


def scram(password: str, salt: bytes | None = None) -> str:
    """What PostgreSQL keeps of a password (RFC 5803), so that the SQL need not hold the password itself."""
    salt = salt or secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ROUNDS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    first, second, third = (base64.b64encode(one).decode() for one in (salt, stored, server))
    return f"SCRAM-SHA-256${SCRAM_ROUNDS}:{first}${second}:{third}"


def _tables() -> Iterator[str]:
    """The ledger's tables, unless they are there."""
    yield "SET LOCAL search_path = public;"
    yield "REVOKE CREATE ON SCHEMA public FROM PUBLIC;"
    yield "DO $evenload$ BEGIN IF to_regclass('public.meta') IS NULL THEN"
    yield from (f"{statement.strip()};" for statement in schema.POSTGRES)
    yield "END IF; END $evenload$;"


def _guard() -> Iterator[str]:
    """Rights are for columns, not for values: triggers keep each role to its own states."""
    yield """CREATE OR REPLACE FUNCTION request_refused() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
RAISE insufficient_privilege USING MESSAGE = current_user || ' may not make a request ' || NEW.status;
END $$;"""
    for name, role in ROLES.items():
        states = ", ".join(f"'{one}'" for one in role.moves_to)
        wrong = f"current_user = '{PREFIX}{name}' AND NEW.status NOT IN ({states})"
        for event, also in (("INSERT", ""), ("UPDATE OF status", " AND NEW.status <> OLD.status")):
            trigger = f"request_{event.split()[0].lower()}_by_{name}"
            yield f"DROP TRIGGER IF EXISTS {trigger} ON request;"
            yield (
                f"CREATE TRIGGER {trigger} BEFORE {event} ON request FOR EACH ROW WHEN ({wrong}{also}) "
                "EXECUTE FUNCTION request_refused();"
            )


def _user(name: str, password: str) -> Iterator[str]:
    role, user = ROLES[name], f"{PREFIX}{name}"
    yield f"DO $evenload$ BEGIN IF to_regrole('{user}') IS NULL THEN CREATE ROLE {user}; END IF; END $evenload$;"
    yield f"ALTER ROLE {user} LOGIN PASSWORD '{scram(password)}';"
    yield f"REVOKE ALL ON {', '.join(TABLES)} FROM {user};"
    yield f"GRANT USAGE ON SCHEMA public TO {user};"
    yield f"GRANT SELECT ON {', '.join(TABLES)} TO {user};"
    yield f"GRANT SELECT ON SEQUENCE transition_number_seq TO {user};"  # how far the history has got
    yield f"GRANT INSERT ON meta TO {user};"
    yield f"GRANT UPDATE ON probe TO {user};"
    for right, tables in (("INSERT", role.inserts), ("UPDATE", role.updates)):
        for table, columns in tables.items():
            yield f"GRANT {right} ({', '.join(columns)}) ON {table} TO {user};"
    for table in role.deletes:
        yield f"GRANT DELETE ON {table} TO {user};"


def main() -> None:
    """Print the SQL for users whose passwords are given as `<role>=<password> …`."""
    try:
        print(provision(dict(argument.partition("=")[::2] for argument in sys.argv[1:])))  # noqa: T201 (its purpose)
    except Misconfigured as error:
        sys.exit(f"provision: {error}")


if __name__ == "__main__":
    main()
