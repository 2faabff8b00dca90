"""The ledger's statements, in the intersection of SQLite's and PostgreSQL's dialects.

Two holes are filled in by each driver: `{now}`, the database's clock [ms since the epoch], and `{rows: a, b}`, the
rows of one JSON parameter (an array of arrays) as a table with the named columns. Each write is a compare-and-set
for many rows at once: the rows it returns are those that changed.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

_ROWS = re.compile(r"\{rows:([^}]*)\}")


@dataclass(frozen=True)
class Dialect:
    """How one database says what the two do not share."""

    now_ms: str
    rows: Callable[[tuple[str, ...]], str]


@functools.cache
def render(statement: str, dialect: Dialect) -> str:
    """`statement` with the dialect's own expressions in its holes."""

    def fill(match: re.Match[str]) -> str:
        return dialect.rows(tuple(column.strip() for column in match.group(1).split(",")))

    return _ROWS.sub(fill, statement).replace("{now}", dialect.now_ms)


# --- what every service does at its start ------------------------------------------------------------------------

AGREE_SPEED = "INSERT INTO meta (name, value) VALUES ('speed', :speed) ON CONFLICT (name) DO NOTHING"
SPEED = "SELECT value FROM meta WHERE name = 'speed'"
PROBE = """
INSERT INTO meta (name, value) VALUES ('probe', :probe) ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""

# --- what gateways do -------------------------------------------------------------------------------------------

ACCEPT_COLUMNS = (
    "id",
    "vehicle_id",
    "energy_requested_j",
    "power_max_w",
    "priority",
    "zone",
    "depart_by_ms",
    "departs_at_ms",
    "wait_max_ms",
    "idempotency_key",
    "body_hash",
)
ACCEPT = """
INSERT INTO request (id, vehicle_id, energy_requested_j, power_max_w, priority, zone, depart_by_ms, departs_at_ms,
                     accepted_at_ms, wait_until_ms, changed_at_ms, status, reason, idempotency_key, body_hash)
SELECT r.id, r.vehicle_id, r.energy_requested_j, r.power_max_w, r.priority, r.zone, r.depart_by_ms, r.departs_at_ms,
       {now}, CASE WHEN r.departs_at_ms < {now} + r.wait_max_ms THEN r.departs_at_ms
                   ELSE {now} + r.wait_max_ms END, {now}, 'accepted', 'submitted', r.idempotency_key, r.body_hash
FROM {rows: id, vehicle_id, energy_requested_j, power_max_w, priority, zone, depart_by_ms, departs_at_ms,
            wait_max_ms, idempotency_key, body_hash} AS r
WHERE true
ON CONFLICT DO NOTHING
"""
ACCEPTED = """
SELECT r.asked, q.id, q.accepted_at_ms, q.wait_until_ms, q.body_hash
FROM {rows: asked, idempotency_key} AS r JOIN request AS q ON q.id = r.asked
UNION ALL
SELECT r.asked, q.id, q.accepted_at_ms, q.wait_until_ms, q.body_hash
FROM {rows: asked, idempotency_key} AS r JOIN request AS q ON q.idempotency_key = r.idempotency_key
WHERE q.id <> r.asked
"""

WITHDRAW = """
UPDATE request
SET status = CASE WHEN request.status = 'charging' THEN 'charging'
                  WHEN request.energy_delivered_j > 0 THEN 'stopped' ELSE 'cancelled' END,
    reason = CASE WHEN request.status = 'charging' THEN request.reason ELSE 'Remote' END,
    changed_at_ms = CASE WHEN request.status = 'charging' THEN request.changed_at_ms ELSE {now} END,
    stop_asked = 1
FROM {rows: id} AS r
WHERE request.id = r.id AND request.status IN ('accepted', 'assigned', 'charging')
"""
STATUSES = "SELECT q.id, q.status FROM {rows: id} AS r JOIN request AS q ON q.id = r.id"
REQUEST = """
SELECT id, vehicle_id, status, substation, attempt, priority, zone, power_max_w, energy_requested_j,
       energy_delivered_j, depart_by_ms, accepted_at_ms, wait_until_ms, decision
FROM request WHERE id = :id
"""
HISTORY = """
SELECT at_ms, status, substation, attempt, epoch, reason FROM transition WHERE request_id = :id ORDER BY number
"""
POSITION = """
SELECT count(*) AS ahead
FROM request AS me JOIN request AS q ON q.status = 'accepted'
WHERE me.id = :id AND q.wait_until_ms > {now}
  AND (q.zone IS NULL OR me.zone IS NULL OR q.zone = me.zone)
  AND (q.priority > me.priority
       OR (q.priority = me.priority AND (q.wait_until_ms < me.wait_until_ms
                                         OR (q.wait_until_ms = me.wait_until_ms AND q.arrival < me.arrival))))
"""
PLACES = "SELECT id AS substation, zone, connectors FROM substation ORDER BY id"


def _queued(condition: str) -> str:
    return f"""
SELECT id AS request_id, substation, zone, energy_requested_j - energy_delivered_j AS owed_j, power_max_w,
       wait_until_ms - {{now}} AS wait_left_ms, departs_at_ms - {{now}} AS departs_in_ms
FROM request WHERE {condition}
"""  # noqa: S608 (conditions are this module's own)


CHARGING_NOW = _queued("status = 'charging'")
IN_BAYS = _queued("status = 'assigned' ORDER BY priority DESC, wait_until_ms, arrival")
IN_LINE = _queued(
    "status = 'accepted' AND wait_until_ms > {now} ORDER BY priority DESC, wait_until_ms, arrival LIMIT :most"
)


def _recent(status: str) -> str:
    return f"""
SELECT * FROM (
    SELECT energy_delivered_j AS delivered_j, power_max_w, changed_at_ms - claimed_at_ms AS took_ms
    FROM request
    WHERE status IN ('completed', 'stopped', 'cancelled', 'expired', 'failed') AND status = '{status}'
      AND changed_at_ms > {{now}} - :within_ms AND claimed_at_ms IS NOT NULL
    ORDER BY changed_at_ms DESC LIMIT :most
) AS {status}
"""  # noqa: S608 (states are this module's own)


# The first condition reads like the index's own, or SQLite does not use it.
RECENT_ENDS = f"{_recent('completed')} UNION ALL {_recent('stopped')}"
LIST = """
SELECT arrival, id, vehicle_id, status, substation, attempt, energy_requested_j, energy_delivered_j, accepted_at_ms
FROM request
WHERE arrival < :before AND (:status = '' OR status = :status) AND (:substation = '' OR substation = :substation)
ORDER BY arrival DESC
LIMIT :most
"""
COUNTS = """
SELECT status, count(*) AS requests FROM request WHERE status = 'accepted' GROUP BY status
UNION ALL
SELECT status, count(*) FROM request WHERE status = 'assigned' GROUP BY status
UNION ALL
SELECT status, count(*) FROM request WHERE status = 'charging' GROUP BY status
UNION ALL
SELECT status, count(*) FROM request
WHERE status IN ('completed', 'stopped', 'cancelled', 'expired', 'failed') GROUP BY status
"""

# --- what balancers do ------------------------------------------------------------------------------------------

WAITING_NAMED = """
SELECT q.id, q.attempt, q.power_max_w, q.zone
FROM {rows: id, attempt} AS r JOIN request AS q ON q.id = r.id
WHERE q.status = 'accepted' AND q.attempt = r.attempt AND q.wait_until_ms > {now}
ORDER BY q.priority DESC, q.wait_until_ms, q.arrival
"""
WAITING_FIRST = """
SELECT id, attempt, power_max_w, zone FROM request
WHERE status = 'accepted' AND wait_until_ms > {now} AND changed_at_ms <= {now} - :older_than_ms
  AND (zone IS NULL OR zone NOT IN (SELECT full_zone FROM {rows: full_zone} AS r))
ORDER BY priority DESC, wait_until_ms, arrival
LIMIT :most
"""
ASSIGN = """
UPDATE request
SET status = 'assigned', reason = 'dispatched', attempt = request.attempt + 1, substation = r.substation,
    decision = r.decision, changed_at_ms = {now}
FROM {rows: id, attempt, substation, decision} AS r
WHERE request.id = r.id AND request.status = 'accepted' AND request.attempt = r.attempt
  AND request.wait_until_ms > {now}
RETURNING id
"""
GIVE_BACK = """
UPDATE request
SET status = 'accepted', reason = r.reason, substation = NULL, changed_at_ms = {now}
FROM {rows: id, attempt, substation, reason} AS r
WHERE request.id = r.id AND request.status = 'assigned' AND request.attempt = r.attempt
  AND request.substation = r.substation
RETURNING id
"""
EXPIRE = """
UPDATE request
SET status = 'expired', reason = 'waited_too_long', changed_at_ms = {now}
WHERE status IN ('accepted', 'assigned') AND wait_until_ms <= {now}
RETURNING id
"""
FORGET = """
DELETE FROM request
WHERE id IN (SELECT id FROM request
             WHERE status IN ('completed', 'stopped', 'cancelled', 'expired', 'failed')
               AND changed_at_ms <= {now} - :older_than_ms
             LIMIT :most)
RETURNING id
"""
FORGET_HISTORY = "DELETE FROM transition WHERE request_id IN (SELECT id FROM {rows: id} AS r)"
UNSEEN = """
SELECT q.id, q.attempt, q.substation, q.power_max_w, 1 AS sign
FROM request AS q WHERE q.status = 'assigned'
UNION ALL
SELECT q.id, q.attempt, q.substation, q.power_max_w, 1
FROM {rows: substation, epoch, claims_total, ends_total} AS r
JOIN request AS q ON q.status = 'charging' AND q.substation = r.substation
WHERE q.claim_number > 0 AND (q.epoch > r.epoch OR (q.epoch = r.epoch AND q.claim_number > r.claims_total))
UNION ALL
SELECT q.id, q.attempt, q.substation, q.power_max_w, -1
FROM {rows: substation, epoch, claims_total, ends_total} AS r
JOIN request AS q ON q.substation = r.substation AND q.epoch = r.epoch AND q.end_number > r.ends_total
WHERE q.claim_number <= r.claims_total
"""
REGISTRY = "SELECT id, zone, epoch, metrics_url FROM substation ORDER BY id"

# --- what substations do ----------------------------------------------------------------------------------------

REGISTER = """
INSERT INTO substation (id, zone, rated_w, limit_w, connectors, bays, metrics_url)
SELECT r.id, r.zone, r.rated_w, r.limit_w, r.connectors, r.bays, r.metrics_url
FROM {rows: id, zone, rated_w, limit_w, connectors, bays, metrics_url} AS r
WHERE true
ON CONFLICT (id) DO UPDATE
SET zone = excluded.zone, rated_w = excluded.rated_w, limit_w = excluded.limit_w,
    connectors = excluded.connectors, bays = excluded.bays, metrics_url = excluded.metrics_url,
    epoch = substation.epoch + 1, claims_total = 0, ends_total = 0
RETURNING id, epoch
"""
RESUME = """
UPDATE request
SET reason = 'resumed', epoch = r.epoch, claim_number = 0, changed_at_ms = {now}
FROM {rows: substation, epoch} AS r
WHERE request.substation = r.substation AND request.status = 'charging'
RETURNING id, attempt, substation, epoch, claim_number, power_max_w, energy_requested_j, energy_delivered_j,
          departs_at_ms - {now} AS departs_in_ms
"""
CLAIM = """
UPDATE request
SET status = 'charging', reason = 'claimed', epoch = r.epoch, claim_number = r.claims_total + r.place,
    claimed_at_ms = {now}, changed_at_ms = {now}
FROM (
    SELECT q.id, q.attempt, s.id AS substation, s.epoch, s.claims_total, c.places,
           s.connectors - (SELECT count(*) FROM request AS o
                           WHERE o.status = 'charging' AND o.substation = s.id) AS connectors_free,
           row_number() OVER (PARTITION BY s.id ORDER BY q.priority DESC, q.wait_until_ms, q.arrival) AS place
    FROM {rows: id, attempt, substation, epoch, places} AS c
    JOIN request AS q ON q.id = c.id
    JOIN substation AS s ON s.id = c.substation
    WHERE q.status = 'assigned' AND q.attempt = c.attempt AND q.substation = c.substation AND s.epoch = c.epoch
      AND q.wait_until_ms > {now}
) AS r
WHERE request.id = r.id AND request.status = 'assigned' AND request.attempt = r.attempt
  AND r.place <= r.places AND r.place <= r.connectors_free
RETURNING id, substation, claim_number
"""
CLAIMED = """
SELECT q.id, q.attempt, q.substation, q.epoch, q.claim_number, q.power_max_w, q.energy_requested_j,
       q.energy_delivered_j, q.departs_at_ms - {now} AS departs_in_ms
FROM {rows: id, attempt, substation, epoch} AS r JOIN request AS q ON q.id = r.id
WHERE q.status = 'charging' AND q.attempt = r.attempt AND q.substation = r.substation AND q.epoch = r.epoch
ORDER BY q.claim_number
"""
HELD = """
SELECT q.id, q.attempt
FROM {rows: id, attempt, substation} AS r JOIN request AS q ON q.id = r.id
WHERE q.status = 'assigned' AND q.attempt = r.attempt AND q.substation = r.substation AND q.wait_until_ms > {now}
ORDER BY q.priority DESC, q.wait_until_ms, q.arrival
"""
COUNT_CLAIMS = """
UPDATE substation SET claims_total = r.total FROM {rows: id, total} AS r
WHERE substation.id = r.id AND substation.claims_total < r.total RETURNING id
"""
PROGRESS = """
UPDATE request SET energy_delivered_j = r.delivered
FROM {rows: id, attempt, substation, epoch, delivered} AS r
WHERE request.id = r.id AND request.status = 'charging' AND request.attempt = r.attempt
  AND request.substation = r.substation AND request.epoch = r.epoch AND request.energy_delivered_j < r.delivered
RETURNING id
"""
END = """
UPDATE request
SET status = r.status, reason = r.reason, end_number = r.end_number, changed_at_ms = {now},
    energy_delivered_j = CASE WHEN r.delivered > request.energy_delivered_j THEN r.delivered
                              ELSE request.energy_delivered_j END
FROM (
    SELECT q.id, q.attempt, q.epoch, c.status, c.reason, c.delivered,
           s.ends_total + row_number() OVER (PARTITION BY s.id ORDER BY q.arrival) AS end_number
    FROM {rows: id, attempt, substation, epoch, status, reason, delivered} AS c
    JOIN request AS q ON q.id = c.id
    JOIN substation AS s ON s.id = c.substation
    WHERE q.status = 'charging' AND q.attempt = c.attempt AND q.substation = c.substation AND q.epoch = c.epoch
      AND s.epoch = c.epoch
) AS r
WHERE request.id = r.id AND request.status = 'charging' AND request.attempt = r.attempt AND request.epoch = r.epoch
RETURNING id, substation, end_number
"""
ENDED = """
SELECT q.id, q.end_number
FROM {rows: id, attempt, substation, epoch} AS r JOIN request AS q ON q.id = r.id
WHERE q.end_number IS NOT NULL AND q.attempt = r.attempt AND q.substation = r.substation AND q.epoch = r.epoch
"""
COUNT_ENDS = """
UPDATE substation SET ends_total = r.total FROM {rows: id, total} AS r
WHERE substation.id = r.id AND substation.ends_total < r.total RETURNING id
"""
EPOCHS = "SELECT s.id AS substation, s.epoch FROM {rows: substation} AS r JOIN substation AS s ON s.id = r.substation"
ASSIGNED_HERE = """
SELECT q.id, q.attempt, q.substation, q.changed_at_ms <= {now} - :older_than_ms AS is_overdue
FROM {rows: substation} AS r JOIN request AS q ON q.status = 'assigned' AND q.substation = r.substation
WHERE q.wait_until_ms > {now}
ORDER BY q.priority DESC, q.wait_until_ms, q.arrival
"""
STOPS_ASKED = """
SELECT q.id, q.attempt, q.substation
FROM {rows: substation} AS r
JOIN substation AS s ON s.id = r.substation
JOIN request AS q ON q.status = 'charging' AND q.substation = s.id AND q.epoch = s.epoch
WHERE q.stop_asked = 1
"""
FORGOTTEN_CHARGING = """
SELECT q.id, q.attempt, q.substation, q.epoch, q.claim_number, q.power_max_w, q.energy_requested_j,
       q.energy_delivered_j, q.departs_at_ms - {now} AS departs_in_ms
FROM substation AS s JOIN request AS q ON q.status = 'charging' AND q.substation = s.id AND q.epoch = s.epoch
WHERE s.id IN (SELECT substation FROM {rows: substation, known_id} AS hosted)
  AND q.id NOT IN (SELECT known_id FROM {rows: substation, known_id} AS known)
"""
