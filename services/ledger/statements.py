"""The ledger's statements, in the intersection of SQLite's and PostgreSQL's dialects.

`dialect` fills in the holes. Each write is a compare-and-set for many rows at once: the rows it returns are those
that changed.

SQLite lets one writer in at a time. PostgreSQL (READ COMMITTED) lets many in, and a statement sees what was committed
when it began. Where its row has been changed since, it waits, then judges the row's new version by its own WHERE, but
by nothing else: a subquery's counts and ranks are not looked up again. So:

- ASSIGN, GIVE_BACK, WITHDRAW, EXPIRE, PROGRESS and FORGET look at nothing but the row and their parameters. Of two that
  race for a row, the second finds another status or attempt, and does not change it. (An assignment that is
  overtaken by EXPIRE: the row is past its wait whichever came first.)
- CLAIM and END count and rank. LOCK_SUBSTATIONS goes before them, in a statement of its own, so that theirs begins, and
  looks, when nobody else can claim, end, take over or beat at these substations. Rows still `assigned` may be
  withdrawn, expired or given back by others: LOCK_REQUESTS holds a claim's candidates before they are ranked, so that
  none drops out afterwards and leaves a gap in the numbers or a connector free.
- TAKE_OVER and SEND_ELSEWHERE (`lease_statements`) rank, and look up whether a stop was asked: their substation's row
  is changed before, and LOCK_CHARGING holds the rows against a withdrawal.
- ACCEPT waits for a rival with the same key to commit, and ACCEPTED, a new statement, sees what it wrote.

PostgreSQL's planner takes a partial index wherever it can prove that its rows suffice, also one that means reading
everything that is open, on old figures. What is asked by id therefore says `status || '' = …`: nothing is proved from
that, and the index of the ids is left. The index of deadlines is EXPIRE's alone, by a condition that only it repeats.

Locks are taken substations first, then requests, in order of their ids; who is in a ring all the same, is retried.
"""

# --- what every service does at its start ------------------------------------------------------------------------

AGREE = """
INSERT INTO meta (name, value) SELECT r.name, r.value FROM {rows: name, value} AS r WHERE true
ON CONFLICT (name) DO NOTHING
"""
AGREED = "SELECT m.name, m.value FROM {rows: name, value} AS r JOIN meta AS m ON m.name = r.name"
PROBE = "UPDATE probe SET value = :probe"
# PostgreSQL shows rows that no standby has yet, once somebody has ended a commit's wait for it. An answer that tells of
# rows which its transaction has only read must wait for them all the same.
WAIT_FOR_OTHERS = "SELECT {written}"

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
                     accepted_at_ms, wait_max_ms, wait_until_ms, changed_at_ms, status, reason, idempotency_key,
                     body_hash)
SELECT r.id, r.vehicle_id, r.energy_requested_j, r.power_max_w, r.priority, r.zone, r.depart_by_ms, r.departs_at_ms,
       {now}, r.wait_max_ms, CASE WHEN r.departs_at_ms < {now} + r.wait_max_ms THEN r.departs_at_ms
                                  ELSE {now} + r.wait_max_ms END,
       {now}, 'accepted', 'submitted', r.idempotency_key, r.body_hash
FROM {rows: id, vehicle_id, energy_requested_j, power_max_w, priority, zone, depart_by_ms, departs_at_ms,
            wait_max_ms, idempotency_key, body_hash} AS r
WHERE true
ON CONFLICT DO NOTHING
RETURNING id
"""
ACCEPTED = """
SELECT r.asked, q.id, q.accepted_at_ms, q.wait_until_ms, q.body_hash
FROM {rows: asked, idempotency_key} AS r JOIN request AS q ON q.id = r.asked
UNION ALL
SELECT r.asked, q.id, q.accepted_at_ms, q.wait_until_ms, q.body_hash
FROM {rows: asked, idempotency_key} AS r JOIN request AS q ON q.idempotency_key = r.idempotency_key
WHERE q.id <> r.asked
"""

ORDER_LIMIT = """
UPDATE substation
SET asked_limit_w = r.limit_w, asked_until_ms = r.until_ms, asked_at_ms = {now},
    order_number = substation.order_number + 1
FROM {rows: id, limit_w, until_ms} AS r
WHERE substation.id = r.id AND (r.limit_w IS NULL OR r.limit_w <= substation.limit_w)
RETURNING substation.id
"""
ORDER_STATUS = """
UPDATE substation
SET operative = r.operative, asked_at_ms = {now}, order_number = substation.order_number + 1
FROM {rows: id, operative} AS r
WHERE substation.id = r.id
RETURNING substation.id
"""
ORDER_STATES = """
SELECT id AS substation, limit_w AS own_limit_w, asked_at_ms, operative,
       CASE WHEN asked_until_ms IS NULL OR asked_until_ms > {now} THEN asked_limit_w END AS asked_limit_w,
       CASE WHEN asked_until_ms > {now} THEN asked_until_ms END AS until_ms,
       CASE WHEN applied_number = order_number THEN applied_at_ms END AS applied_at_ms
FROM substation ORDER BY id
"""
METRICS_ADDRESSES = "SELECT id, metrics_url FROM substation WHERE metrics_url <> '' ORDER BY id"
WITHDRAW = """
UPDATE request
SET status = CASE WHEN request.status = 'charging' THEN 'charging'
                  WHEN request.energy_delivered_j > 0 THEN 'stopped' ELSE 'cancelled' END,
    reason = CASE WHEN request.status = 'charging' THEN request.reason ELSE 'Remote' END,
    changed_at_ms = CASE WHEN request.status = 'charging' THEN request.changed_at_ms ELSE {now} END,
    stop_asked = 1
FROM {rows: id} AS r
WHERE request.id = r.id AND request.status IN ('accepted', 'assigned', 'charging')
RETURNING request.id
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
"""


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
"""


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
WHERE q.status || '' = 'accepted' AND q.attempt = r.attempt AND q.wait_until_ms > {now}
ORDER BY q.priority DESC, q.wait_until_ms, q.arrival
"""
# What changed in the future did so before the database's clock was set back: nobody waits for that to come again.
WAITING_FIRST = """
SELECT id, attempt, power_max_w, zone FROM request
WHERE status = 'accepted' AND wait_until_ms > {now}
  AND (changed_at_ms <= {now} - :older_than_ms OR changed_at_ms > {now})
  AND (zone IS NULL OR zone NOT IN (SELECT full_zone FROM {rows: full_zone} AS r))
ORDER BY priority DESC, wait_until_ms, arrival
LIMIT :most
"""
ASSIGN = """
UPDATE request
SET status = 'assigned', reason = 'dispatched', attempt = request.attempt + 1, substation = r.substation,
    bay_epoch = NULL, decision = r.decision, changed_at_ms = {now}
FROM {rows: id, attempt, substation, decision} AS r
WHERE request.id = r.id AND request.status || '' = 'accepted' AND request.attempt = r.attempt
  AND request.wait_until_ms > {now}
RETURNING request.id
"""
GIVE_BACK = """
UPDATE request
SET status = 'accepted', reason = r.reason, substation = NULL, changed_at_ms = {now}
FROM {rows: id, attempt, substation, reason} AS r
WHERE request.id = r.id AND request.status || '' = 'assigned' AND request.attempt = r.attempt
  AND request.substation = r.substation
RETURNING request.id
"""
EXPIRE = """
UPDATE request
SET status = 'expired', reason = 'waited_too_long', changed_at_ms = {now}
WHERE status IN ('accepted', 'assigned') AND wait_until_ms > 0 AND wait_until_ms <= {now}
RETURNING id
"""
EXPIRED = """
SELECT id FROM request WHERE status IN ('accepted', 'assigned') AND wait_until_ms > 0 AND wait_until_ms <= {now}
"""
EXPIRE_NAMED = """
UPDATE request
SET status = 'expired', reason = 'waited_too_long', changed_at_ms = {now}
FROM {rows: id} AS r
WHERE request.id = r.id AND request.status || '' IN ('accepted', 'assigned') AND request.wait_until_ms <= {now}
RETURNING request.id
"""
DATABASE_NOW = "SELECT {now} AS now_ms"
# The caller's idea of the time, unless the database's clock is earlier.
_TIME_TO_FORGET = "CASE WHEN :at_most_ms < {now} THEN :at_most_ms ELSE {now} END"
FORGETTABLE = f"""
SELECT id FROM request
WHERE status IN ('completed', 'stopped', 'cancelled', 'expired', 'failed')
  AND changed_at_ms <= {_TIME_TO_FORGET} - :older_than_ms
LIMIT :most
"""
# One state at a time, along the index: a page goes on where the one before it ended, and reads no more than itself.
FORGETTABLE_AFTER = f"""
SELECT id, arrival, changed_at_ms FROM request
WHERE status IN ('completed', 'stopped', 'cancelled', 'expired', 'failed') AND status = :status
  AND changed_at_ms <= {_TIME_TO_FORGET} - :older_than_ms
  AND changed_at_ms >= :since_ms AND (changed_at_ms > :since_ms OR arrival > :arrival)
ORDER BY changed_at_ms, arrival LIMIT :most
"""
# What has ended stays so: it need not be looked at again.
FORGET = "DELETE FROM request WHERE id IN (SELECT id FROM {rows: id} AS r) RETURNING id"
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
REGISTRY = """
SELECT id, zone, epoch, metrics_url, CASE WHEN left_at_ms IS NULL THEN 1 ELSE 0 END AS has_lease FROM substation
WHERE left_at_ms IS NULL OR left_at_ms > {now} - :gone_within_ms
ORDER BY id
"""

# A breach counts once it has stood for so long: a sweep that was away has first to catch up. Ends are grouped by an
# expression: PostgreSQL 17 would otherwise read the whole history, in the order of its index by request.
AUDIT = """
SELECT 'more energy than granted, or granted than asked for' AS promise, id AS subject, 0 AS after_s FROM request
WHERE status = 'charging' AND (energy_delivered_j > energy_granted_j OR energy_granted_j > energy_requested_j)
UNION ALL
SELECT 'charging outside of a tenure', q.id, 0 FROM request AS q LEFT JOIN substation AS s ON s.id = q.substation
WHERE q.status = 'charging' AND (s.id IS NULL OR q.epoch IS NULL OR q.epoch > s.epoch)
UNION ALL
SELECT 'more sessions than connectors', s.id, 0 FROM substation AS s
WHERE s.connectors < (SELECT count(*) FROM request AS o WHERE o.status = 'charging' AND o.substation = s.id)
UNION ALL
SELECT 'ended twice', request_id || '', 0 FROM transition
WHERE number > (SELECT max(number) FROM transition) - :newest
  AND status IN ('completed', 'stopped', 'cancelled', 'expired', 'failed')
GROUP BY request_id || '' HAVING count(*) > 1
UNION ALL
SELECT 'assigned where nobody is', q.id, 30 FROM request AS q JOIN substation AS s ON s.id = q.substation
WHERE q.status = 'assigned' AND s.left_at_ms IS NOT NULL
UNION ALL
SELECT 'waiting past its time', id, 30 FROM request
WHERE status IN ('accepted', 'assigned') AND wait_until_ms > 0 AND wait_until_ms <= {now}
LIMIT 100
"""

# --- what substations do ----------------------------------------------------------------------------------------

LOCK_SUBSTATIONS = """
SELECT s.id FROM substation AS s WHERE s.id IN (SELECT id FROM {rows: id} AS r) ORDER BY s.id {for update}
"""
LOCK_REQUESTS = """
SELECT q.id FROM request AS q WHERE q.id IN (SELECT id FROM {rows: id} AS r) ORDER BY q.id {for update}
"""
CLAIM = """
UPDATE request
SET status = 'charging', reason = 'claimed', epoch = r.epoch, claim_number = r.claims_total + r.place,
    claimed_at_ms = {now}, changed_at_ms = {now},
    energy_granted_j =
        CASE WHEN request.energy_requested_j < request.energy_delivered_j + request.power_max_w * r.grant_s
             THEN request.energy_requested_j
             ELSE request.energy_delivered_j + request.power_max_w * r.grant_s END
FROM (
    SELECT q.id, q.attempt, s.id AS substation, s.epoch, s.claims_total, c.places, c.grant_s,
           CASE WHEN c.usable < s.connectors THEN c.usable ELSE s.connectors END
               - (SELECT count(*) FROM request AS o
                  WHERE o.status = 'charging' AND o.substation = s.id) AS connectors_free,
           row_number() OVER (PARTITION BY s.id ORDER BY c.stands_in_bay DESC, q.priority DESC, q.wait_until_ms,
                                                         q.arrival) AS place
    FROM {rows: id, attempt, substation, epoch, places, grant_s, stands_in_bay, usable} AS c
    JOIN request AS q ON q.id = c.id
    JOIN substation AS s ON s.id = c.substation
    WHERE q.status || '' = 'assigned' AND q.attempt = c.attempt AND q.substation = c.substation AND s.epoch = c.epoch
      AND s.released = 0 AND s.operative = 1 AND q.stop_asked = 0 AND q.wait_until_ms > {now}
) AS r
WHERE request.id = r.id AND request.status || '' = 'assigned' AND request.attempt = r.attempt
  AND r.place <= r.places AND r.place <= r.connectors_free
RETURNING request.id, request.substation, request.claim_number
"""
CLAIMED = """
SELECT q.id, q.attempt, q.substation, q.epoch, q.claim_number, q.power_max_w, q.energy_requested_j,
       q.energy_delivered_j, q.energy_granted_j, q.departs_at_ms - {now} AS departs_in_ms, q.stop_asked
FROM {rows: id, attempt, substation, epoch} AS r JOIN request AS q ON q.id = r.id
WHERE q.status || '' = 'charging' AND q.attempt = r.attempt AND q.substation = r.substation AND q.epoch = r.epoch
ORDER BY q.claim_number
"""
HELD = """
SELECT q.id, q.attempt
FROM {rows: id, attempt, substation} AS r JOIN request AS q ON q.id = r.id
WHERE q.status || '' = 'assigned' AND q.attempt = r.attempt AND q.substation = r.substation AND q.wait_until_ms > {now}
ORDER BY q.priority DESC, q.wait_until_ms, q.arrival
"""
COUNT_CLAIMS = """
UPDATE substation SET claims_total = r.total FROM {rows: id, total} AS r
WHERE substation.id = r.id AND substation.claims_total < r.total RETURNING substation.id
"""
END = """
UPDATE request
SET status = r.status, reason = r.reason, end_number = r.end_number, changed_at_ms = {now},
    energy_delivered_j = CASE WHEN r.delivered > request.energy_delivered_j THEN r.delivered
                              ELSE request.energy_delivered_j END,
    energy_granted_j = CASE WHEN r.delivered > request.energy_delivered_j THEN r.delivered
                            ELSE request.energy_delivered_j END
FROM (
    SELECT q.id, q.attempt, q.epoch, c.status, c.reason, c.delivered,
           s.ends_total + row_number() OVER (PARTITION BY s.id ORDER BY q.arrival) AS end_number
    FROM {rows: id, attempt, substation, epoch, status, reason, delivered} AS c
    JOIN request AS q ON q.id = c.id
    JOIN substation AS s ON s.id = c.substation
    WHERE q.status || '' = 'charging' AND q.attempt = c.attempt AND q.substation = c.substation AND q.epoch = c.epoch
      AND s.epoch = c.epoch
) AS r
WHERE request.id = r.id AND request.status || '' = 'charging' AND request.attempt = r.attempt
  AND request.epoch = r.epoch
RETURNING request.id, request.substation, request.end_number
"""
ENDED = """
SELECT q.id, q.end_number
FROM {rows: id, attempt, substation, epoch} AS r JOIN request AS q ON q.id = r.id
WHERE COALESCE(q.end_number, 0) > 0 AND q.attempt = r.attempt AND q.substation = r.substation AND q.epoch = r.epoch
"""
NOT_ENDED = """
SELECT q.id
FROM {rows: id, attempt, substation, epoch} AS r
JOIN request AS q ON q.id = r.id
JOIN substation AS s ON s.id = r.substation
WHERE q.status || '' = 'charging' AND q.attempt = r.attempt AND q.substation = r.substation AND q.epoch = r.epoch
  AND s.epoch = r.epoch
"""
COUNT_ENDS = """
UPDATE substation SET ends_total = r.total FROM {rows: id, total} AS r
WHERE substation.id = r.id AND substation.ends_total < r.total RETURNING substation.id
"""
