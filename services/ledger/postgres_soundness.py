"""Whether a PostgreSQL database would keep what it is given: lasting tables, a history, and one row per request."""

from typing import LiteralString

from services.ledger.committer import Row

MUTE = (
    "sets session_replication_role to replica, so that triggers keep no history",
    "ALTER DATABASE or ALTER ROLE with RESET session_replication_role",
)

_RESTORE = "restore the whole backup"
EMPTY = "has an empty table meta, as after a restore that broke off", _RESTORE

NOT_SYNCED = (
    "has fsync turned off, so that a crash of its host loses what was accepted",
    "set fsync = on in postgresql.conf, and reload it",
)

_TABLES: LiteralString = "'meta', 'probe', 'request', 'transition', 'substation'"
COLUMNS: LiteralString = f"""
current_setting('session_replication_role') = 'replica' AS is_mute,
(SELECT string_agg(name, ', ' ORDER BY name) FROM unnest(ARRAY[{_TABLES}]) AS name
 WHERE to_regclass('public.' || name) IS NULL) AS missing,
(SELECT min(relname::text) FROM pg_class
 WHERE oid IN (SELECT to_regclass('public.' || name) FROM unnest(ARRAY[{_TABLES}]) AS name)
   AND relpersistence <> 'p') AS unlogged,
(SELECT string_agg(name, ', ' ORDER BY name)
 FROM unnest(ARRAY['request_accepted', 'request_changed', 'request_in_order']) AS name
 WHERE NOT EXISTS (SELECT 1 FROM pg_trigger AS t WHERE t.tgrelid = to_regclass('public.request') AND t.tgname = name
                                                   AND t.tgenabled IN ('O', 'A'))) AS silent,
(SELECT min(name) FROM unnest(ARRAY['id', 'idempotency_key']) AS name
 WHERE NOT EXISTS (SELECT 1 FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid
                                                                    AND a.attnum = i.indkey[0]
                   WHERE i.indrelid = to_regclass('public.request') AND a.attname = name AND i.indnkeyatts = 1
                     AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL)) AS not_unique
"""  # noqa: S608 (the names are our own)
"""What `fault` judges, as columns of a query. By what an index does, not by its name."""


def fault(found: Row) -> tuple[str, str] | None:
    """The cause and the cure of what is wrong with a database; None where it is sound."""
    if found["is_mute"]:
        return MUTE
    if missing := found["missing"]:
        return f"lacks tables of the ledger ({missing})", _RESTORE
    if table := found["unlogged"]:
        return f"has the unlogged table {table}, which a crash empties", f"ALTER TABLE {table} SET LOGGED"
    if silent := found["silent"]:
        return (
            f"has triggers of the table request that are disabled or missing, so that it keeps no history ({silent})",
            "ALTER TABLE request ENABLE TRIGGER USER, or restore the whole backup where they are missing",
        )
    if column := found["not_unique"]:
        return (
            f"has no valid unique index on request ({column}), so that it may keep a request twice",
            f"CREATE UNIQUE INDEX ON request ({column})",
        )
    return None
