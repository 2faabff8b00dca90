"""The ledger's tables. The history is written by triggers, so that no statement can forget it."""

from services.errors import Misconfigured

VERSION = 3

_TABLES = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "INSERT INTO meta VALUES ('schema_version', '{version}')",
    # One row, which is changed to find out whether anything can be.
    "CREATE TABLE probe (value TEXT NOT NULL)",
    "INSERT INTO probe VALUES ('')",
    """
    CREATE TABLE request (
        arrival            {serial},
        id                 TEXT    NOT NULL UNIQUE,
        vehicle_id         TEXT    NOT NULL,
        energy_requested_j {integer} NOT NULL,
        energy_delivered_j {integer} NOT NULL DEFAULT 0,
        energy_granted_j   {integer} NOT NULL DEFAULT 0,
        power_max_w        {integer} NOT NULL,
        priority           {integer} NOT NULL,
        zone               TEXT,
        depart_by_ms       {integer},
        departs_at_ms      {integer},
        accepted_at_ms     {integer} NOT NULL,
        wait_max_ms        {integer} NOT NULL,
        wait_until_ms      {integer} NOT NULL,
        changed_at_ms      {integer} NOT NULL,
        status             TEXT    NOT NULL,
        reason             TEXT    NOT NULL,
        attempt            {integer} NOT NULL DEFAULT 0,
        interruptions      {integer} NOT NULL DEFAULT 0,
        substation         TEXT,
        bay_epoch          {integer},
        epoch              {integer},
        claim_number       {integer},
        claimed_at_ms      {integer},
        end_number         {integer},
        stop_asked         {integer} NOT NULL DEFAULT 0,
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
    # The second condition keeps it out of what only asks who waits.
    """
    CREATE INDEX request_deadline ON request (wait_until_ms)
    WHERE status IN ('accepted', 'assigned') AND wait_until_ms > 0
    """,
    # Only the ended ones: an index over all states lures the planner away from the narrow ones above.
    """
    CREATE INDEX request_terminal ON request (status, changed_at_ms)
    WHERE status IN ('completed', 'stopped', 'cancelled', 'expired', 'failed')
    """,
    """
    CREATE TABLE transition (
        number     {serial},
        request_id TEXT    NOT NULL,
        at_ms      {integer} NOT NULL,
        status     TEXT    NOT NULL,
        substation TEXT,
        attempt    {integer} NOT NULL,
        epoch      {integer},
        reason     TEXT    NOT NULL
    )
    """,
    "CREATE INDEX transition_request ON transition (request_id)",
    """
    CREATE TABLE substation (
        id           TEXT    PRIMARY KEY,
        zone         TEXT,
        rated_w      {integer} NOT NULL,
        limit_w      {integer} NOT NULL,
        connectors   {integer} NOT NULL,
        bays         {integer} NOT NULL,
        metrics_url  TEXT    NOT NULL,
        epoch        {integer} NOT NULL DEFAULT 1,
        renewals     {integer} NOT NULL DEFAULT 0,
        holder       TEXT,
        released     {integer} NOT NULL DEFAULT 0,
        heir         TEXT,
        left_at_ms   {integer},
        order_number      {integer} NOT NULL DEFAULT 0,
        operative         {integer} NOT NULL DEFAULT 1,
        asked_limit_w     {integer},
        asked_until_ms    {integer},
        asked_at_ms       {integer},
        applied_number    {integer},
        applied_operative {integer},
        applied_limit_w   {integer},
        applied_at_ms     {integer},
        claims_total {integer} NOT NULL DEFAULT 0,
        ends_total   {integer} NOT NULL DEFAULT 0
    )
    """,
)
"""Every table and index, with holes for the words that the two databases do not share."""

_HISTORY = """
INSERT INTO {schema}transition (request_id, at_ms, status, substation, attempt, epoch, reason)
VALUES (NEW.id, NEW.changed_at_ms, NEW.status, NEW.substation, NEW.attempt, NEW.epoch, NEW.reason);
"""


def _filled(text: str, **words: str) -> str:
    for name, word in {**words, "version": str(VERSION)}.items():
        text = text.replace(f"{{{name}}}", word)
    return text


SQLITE = (
    *(_filled(text, serial="INTEGER PRIMARY KEY AUTOINCREMENT", integer="INTEGER") for text in _TABLES),
    f"CREATE TRIGGER request_accepted AFTER INSERT ON request BEGIN {_filled(_HISTORY, schema='')} END",
    f"""
    CREATE TRIGGER request_changed AFTER UPDATE OF status, epoch ON request
    WHEN NEW.status <> OLD.status OR NEW.epoch IS NOT OLD.epoch BEGIN {_filled(_HISTORY, schema="")} END
    """,
)

POSTGRES = (
    *(
        _filled(text, serial="BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY", integer="BIGINT")
        for text in _TABLES
    ),
    # As the owner: who may change a request may not write history. The fixed path keeps other people's tables out.
    f"""
    CREATE FUNCTION request_history() RETURNS trigger LANGUAGE plpgsql
    SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $$ BEGIN {_filled(_HISTORY, schema="public.")} RETURN NULL; END $$
    """,
    """
    CREATE TRIGGER request_accepted AFTER INSERT ON request FOR EACH ROW EXECUTE FUNCTION request_history()
    """,
    """
    CREATE TRIGGER request_changed AFTER UPDATE OF status, epoch ON request FOR EACH ROW
    WHEN (NEW.status <> OLD.status OR NEW.epoch IS DISTINCT FROM OLD.epoch) EXECUTE FUNCTION request_history()
    """,
    # A statement that had to wait for the row has read the clock before whoever it waited for.
    """
    CREATE FUNCTION request_in_order() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN NEW.changed_at_ms := OLD.changed_at_ms; RETURN NEW; END $$
    """,
    """
    CREATE TRIGGER request_in_order BEFORE UPDATE OF status, epoch ON request FOR EACH ROW
    WHEN (NEW.changed_at_ms < OLD.changed_at_ms
          AND (NEW.status <> OLD.status OR NEW.epoch IS DISTINCT FROM OLD.epoch))
    EXECUTE FUNCTION request_in_order()
    """,
)


def refuse_other_version(where: str, found: str | None, kind: str) -> None:
    """Raise `Misconfigured` unless the ledger at `where`, a `kind` of thing, has the version that we write."""
    if found is None:
        raise Misconfigured(
            f"EVENLOAD_LEDGER_URL: {where} is a database, but not Evenload's ledger: name another {kind}"
        )
    if found != str(VERSION):
        raise Misconfigured(
            f"EVENLOAD_LEDGER_URL: {where} has schema version {found}, this Evenload writes version {VERSION}: "
            f"use the Evenload that wrote it, or name another {kind}"
        )
