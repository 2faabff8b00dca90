"""The ledger's tables. The history is written by triggers, so that no statement can forget it."""

from services.errors import Misconfigured

VERSION = 3

_HISTORY = """
INSERT INTO transition (request_id, at_ms, status, substation, attempt, epoch, reason)
VALUES (NEW.id, NEW.changed_at_ms, NEW.status, NEW.substation, NEW.attempt, NEW.epoch, NEW.reason);
"""

SQLITE = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    f"INSERT INTO meta VALUES ('schema_version', '{VERSION}')",  # noqa: S608 (a constant)
    """
    CREATE TABLE request (
        arrival            INTEGER PRIMARY KEY AUTOINCREMENT,
        id                 TEXT    NOT NULL UNIQUE,
        vehicle_id         TEXT    NOT NULL,
        energy_requested_j INTEGER NOT NULL,
        energy_delivered_j INTEGER NOT NULL DEFAULT 0,
        energy_granted_j   INTEGER NOT NULL DEFAULT 0,
        power_max_w        INTEGER NOT NULL,
        priority           INTEGER NOT NULL,
        zone               TEXT,
        depart_by_ms       INTEGER,
        departs_at_ms      INTEGER,
        accepted_at_ms     INTEGER NOT NULL,
        wait_max_ms        INTEGER NOT NULL,
        wait_until_ms      INTEGER NOT NULL,
        changed_at_ms      INTEGER NOT NULL,
        status             TEXT    NOT NULL,
        reason             TEXT    NOT NULL,
        attempt            INTEGER NOT NULL DEFAULT 0,
        interruptions      INTEGER NOT NULL DEFAULT 0,
        substation         TEXT,
        bay_epoch          INTEGER,
        epoch              INTEGER,
        claim_number       INTEGER,
        claimed_at_ms      INTEGER,
        end_number         INTEGER,
        stop_asked         INTEGER NOT NULL DEFAULT 0,
        decision           TEXT,
        idempotency_key    TEXT    UNIQUE,
        body_hash          TEXT
    )
    """,
    "CREATE INDEX request_waiting ON request (priority DESC, wait_until_ms, arrival) WHERE status = 'accepted'",
    # One for each state: SQLite proves that a partial index fits only where the conditions read alike.
    "CREATE INDEX request_assigned ON request (substation) WHERE status = 'assigned'",
    "CREATE INDEX request_charging ON request (substation, epoch, claim_number) WHERE status = 'charging'",
    "CREATE INDEX request_ended ON request (substation, epoch, end_number) WHERE end_number IS NOT NULL",
    "CREATE INDEX request_deadline ON request (wait_until_ms) WHERE status IN ('accepted', 'assigned')",
    # Only the ended ones: an index over all states lures the planner away from the narrow ones above.
    """
    CREATE INDEX request_terminal ON request (status, changed_at_ms)
    WHERE status IN ('completed', 'stopped', 'cancelled', 'expired', 'failed')
    """,
    """
    CREATE TABLE transition (
        number     INTEGER PRIMARY KEY AUTOINCREMENT,
        request_id TEXT    NOT NULL,
        at_ms      INTEGER NOT NULL,
        status     TEXT    NOT NULL,
        substation TEXT,
        attempt    INTEGER NOT NULL,
        epoch      INTEGER,
        reason     TEXT    NOT NULL
    )
    """,
    "CREATE INDEX transition_request ON transition (request_id)",
    f"CREATE TRIGGER request_accepted AFTER INSERT ON request BEGIN {_HISTORY} END",
    f"""
    CREATE TRIGGER request_changed AFTER UPDATE OF status, epoch ON request
    WHEN NEW.status <> OLD.status OR NEW.epoch IS NOT OLD.epoch BEGIN {_HISTORY} END
    """,
    """
    CREATE TABLE substation (
        id           TEXT    PRIMARY KEY,
        zone         TEXT,
        rated_w      INTEGER NOT NULL,
        limit_w      INTEGER NOT NULL,
        connectors   INTEGER NOT NULL,
        bays         INTEGER NOT NULL,
        metrics_url  TEXT    NOT NULL,
        epoch        INTEGER NOT NULL DEFAULT 1,
        renewals     INTEGER NOT NULL DEFAULT 0,
        holder       TEXT,
        released     INTEGER NOT NULL DEFAULT 0,
        heir         TEXT,
        left_at_ms   INTEGER,
        order_number      INTEGER NOT NULL DEFAULT 0,
        operative         INTEGER NOT NULL DEFAULT 1,
        asked_limit_w     INTEGER,
        asked_until_ms    INTEGER,
        asked_at_ms       INTEGER,
        applied_number    INTEGER,
        applied_operative INTEGER,
        applied_limit_w   INTEGER,
        applied_at_ms     INTEGER,
        claims_total INTEGER NOT NULL DEFAULT 0,
        ends_total   INTEGER NOT NULL DEFAULT 0
    )
    """,
)


def refuse_other_version(where: str, found: str | None) -> None:
    """Raise `Misconfigured` unless the ledger at `where` has the version that this Evenload writes."""
    if found is None:
        raise Misconfigured(f"EVENLOAD_LEDGER_URL: {where} is a database, but not Evenload's ledger: name another file")
    if found != str(VERSION):
        raise Misconfigured(
            f"EVENLOAD_LEDGER_URL: {where} has schema version {found}, this Evenload writes version {VERSION}: "
            "use the Evenload that wrote it, or name another file"
        )
