"""The statements of leases: taking, renewing, releasing and losing a substation, and what then becomes of its rows.

Each first changes the substation's row, which is what claims and rivals are ordered by; only where that changed a row
are requests moved. See `dialect` for the holes.
"""

from services.ledger.states import INTERRUPTIONS_MAX, RETURNS_MAX, Reason

LEASES = "SELECT id AS substation, epoch, renewals, holder, released, heir FROM substation"
LEASES_OF = f"{LEASES} WHERE id IN (SELECT id FROM {{rows: id}} AS r)"
ALL_LEASES = f"{LEASES} ORDER BY id"

WAIT_FOR = """
UPDATE substation SET heir = r.heir
FROM {rows: id, heir} AS r
WHERE substation.id = r.id AND substation.holder IS NOT NULL AND substation.released = 0
  AND (substation.heir IS NULL OR substation.heir <> r.heir)
RETURNING substation.id
"""
STOP_WAITING = """
UPDATE substation SET heir = NULL
FROM {rows: heir} AS r
WHERE substation.heir = r.heir
RETURNING substation.id
"""
FOUND = """
INSERT INTO substation (id, zone, rated_w, limit_w, connectors, bays, metrics_url, holder)
SELECT r.id, r.zone, r.rated_w, r.limit_w, r.connectors, r.bays, r.metrics_url, r.holder
FROM {rows: id, zone, rated_w, limit_w, connectors, bays, metrics_url, holder} AS r
WHERE true
ON CONFLICT (id) DO NOTHING
RETURNING id, epoch
"""
_UNCHANGED = """
substation.id = r.id AND substation.epoch = r.epoch AND substation.renewals = r.renewals
  AND COALESCE(substation.holder, '') = r.old_holder AND substation.released = r.released
"""
TAKE = f"""
UPDATE substation
SET epoch = substation.epoch + 1, renewals = substation.renewals + 1, holder = r.holder, released = 0, heir = NULL,
    left_at_ms = NULL, claims_total = 0, ends_total = 0,
    zone = r.zone, rated_w = r.rated_w, limit_w = r.limit_w, connectors = r.connectors, bays = r.bays,
    metrics_url = r.metrics_url
FROM {{rows: id, zone, rated_w, limit_w, connectors, bays, metrics_url, holder,
            epoch, renewals, old_holder, released}} AS r
WHERE {_UNCHANGED}
RETURNING substation.id, substation.epoch
"""
LOSE = f"""
UPDATE substation
SET epoch = substation.epoch + 1, holder = NULL, released = 0, heir = NULL,
    left_at_ms = COALESCE(substation.left_at_ms, {{now}})
FROM {{rows: id, epoch, renewals, old_holder, released}} AS r
WHERE {_UNCHANGED}
RETURNING substation.id, substation.epoch
"""
RENEW = """
UPDATE substation SET renewals = substation.renewals + 1, heir = NULL
FROM {rows: id, epoch, holder} AS r
WHERE substation.id = r.id AND substation.epoch = r.epoch AND substation.holder = r.holder AND substation.released = 0
RETURNING substation.id
"""
# Who leaves in order leaves no address behind: nothing is missing there.
RELEASE = """
UPDATE substation SET released = 1, left_at_ms = {now}, metrics_url = ''
FROM {rows: id, epoch, holder} AS r
WHERE substation.id = r.id AND substation.epoch = r.epoch AND substation.holder = r.holder AND substation.released = 0
RETURNING substation.id
"""
SETTLE = """
UPDATE request SET energy_granted_j = request.energy_delivered_j
FROM {rows: substation, epoch} AS r
WHERE request.status = 'charging' AND request.substation = r.substation AND request.epoch = r.epoch {spared}
RETURNING request.id
"""

# Nothing expires because of a loss alone: who is sent back has the whole wait before it, up to its departure.
_WAIT_ANEW = """CASE WHEN request.departs_at_ms < {now} + request.wait_max_ms THEN request.departs_at_ms
         WHEN request.wait_until_ms > {now} + request.wait_max_ms THEN request.wait_until_ms
         ELSE {now} + request.wait_max_ms END"""
# But a request that always comes back must end, too: perhaps a rule of the database forbids its claim, or every
# substation dies of it.
_WAIT_ON_RETURN = f"""CASE WHEN {RETURNS_MAX} <= (
             SELECT count(*) FROM transition AS t
             WHERE t.request_id = request.id AND t.status = 'accepted'
               AND t.reason IN ('{Reason.UNCLAIMED}', '{Reason.SUBSTATION_LOST}'))
         THEN request.wait_until_ms ELSE {_WAIT_ANEW} END"""


def _interrupted(goes_on: str, why: str) -> str:
    """Charging rows of earlier epochs than `r.epoch`: what each becomes; `goes_on` where nothing ends it.

    An open grant may have been delivered, so it counts as delivered. A holder that left in order has settled, so that
    none is open, unless the database refused that; after any other each session has one interruption more (`forfeit`).
    """
    return f"""
SELECT m.id, m.attempt, m.old_epoch, m.epoch, m.delivered, m.forfeit, m.claim_number,
       CASE WHEN m.energy_requested_j <= m.delivered THEN 'completed'
            WHEN m.stop_asked = 1 OR m.departs_at_ms <= {{now}} THEN 'stopped'
            WHEN m.interruptions + m.forfeit > {INTERRUPTIONS_MAX} THEN 'failed'
            ELSE {goes_on} END AS status,
       CASE WHEN m.energy_requested_j <= m.delivered THEN 'EnergyLimitReached'
            WHEN m.stop_asked = 1 THEN 'Remote'
            WHEN m.departs_at_ms <= {{now}} THEN 'EVDisconnected'
            WHEN m.interruptions + m.forfeit > {INTERRUPTIONS_MAX} THEN 'interrupted_too_often'
            ELSE {why} END AS reason
FROM (
    SELECT q.id, q.attempt, q.epoch AS old_epoch, q.energy_requested_j, q.stop_asked, q.departs_at_ms, q.interruptions,
           c.epoch, c.forfeit, s.connectors,
           CASE WHEN q.energy_granted_j > q.energy_delivered_j THEN q.energy_granted_j
                ELSE q.energy_delivered_j END AS delivered,
           row_number() OVER (PARTITION BY q.substation ORDER BY q.claimed_at_ms, q.arrival) AS place,
           row_number() OVER (PARTITION BY q.substation ORDER BY q.claimed_at_ms, q.arrival)
               - count(*) OVER (PARTITION BY q.substation) AS claim_number
    FROM {{rows: substation, epoch, forfeit}} AS c
    JOIN substation AS s ON s.id = c.substation
    JOIN request AS q ON q.status = 'charging' AND q.substation = c.substation AND q.epoch < c.epoch
) AS m
"""


# Whether a stop was asked is looked up in a subquery, which a row that changes meanwhile does not make PostgreSQL look
# up again: a statement of its own holds the rows first.
LOCK_CHARGING = """
SELECT q.id FROM request AS q
WHERE q.status = 'charging' AND q.substation IN (SELECT substation FROM {rows: substation} AS r)
ORDER BY q.id {for update}
"""
TAKE_OVER = f"""
UPDATE request
SET status = r.status, reason = r.reason, interruptions = request.interruptions + r.forfeit,
    energy_delivered_j = r.delivered, energy_granted_j = r.delivered, changed_at_ms = {{now}},
    epoch = CASE WHEN r.status = 'charging' THEN r.epoch ELSE request.epoch END,
    claim_number = r.claim_number,
    substation = CASE WHEN r.status = 'accepted' THEN NULL ELSE request.substation END,
    wait_until_ms = CASE WHEN r.status = 'accepted' THEN {_WAIT_ANEW} ELSE request.wait_until_ms END
FROM ({
    _interrupted(
        "CASE WHEN m.place <= m.connectors THEN 'charging' ELSE 'accepted' END",
        "CASE WHEN m.place <= m.connectors THEN 'resumed' ELSE 'declined' END",
    )
}) AS r
WHERE request.id = r.id AND request.status || '' = 'charging' AND request.attempt = r.attempt
  AND request.epoch = r.old_epoch {{spared}}
RETURNING request.id, request.status, request.reason
"""
SEND_ELSEWHERE = f"""
UPDATE request
SET status = r.status, reason = r.reason, interruptions = request.interruptions + r.forfeit,
    energy_delivered_j = r.delivered, energy_granted_j = r.delivered, changed_at_ms = {{now}},
    substation = CASE WHEN r.status = 'accepted' THEN NULL ELSE request.substation END,
    wait_until_ms = CASE WHEN r.status = 'accepted' THEN {_WAIT_ANEW} ELSE request.wait_until_ms END
FROM ({_interrupted("'accepted'", "'substation_lost'")}) AS r
WHERE request.id = r.id AND request.status || '' = 'charging' AND request.attempt = r.attempt
  AND request.epoch = r.old_epoch {{spared}}
RETURNING request.id, request.status, request.reason
"""
SEND_BACK = f"""
UPDATE request
SET status = 'accepted', reason = 'substation_lost', substation = NULL, changed_at_ms = {{now}},
    wait_until_ms = {_WAIT_ON_RETURN}
FROM {{rows: substation}} AS r
WHERE request.status = 'assigned' AND request.substation = r.substation {{spared}}
RETURNING request.id, request.status, request.reason
"""
OPEN_AT = """
SELECT q.id FROM {rows: substation} AS r JOIN request AS q ON q.status = 'charging' AND q.substation = r.substation
UNION ALL
SELECT q.id FROM {rows: substation} AS r JOIN request AS q ON q.status = 'assigned' AND q.substation = r.substation
"""
ORPHANED = """
SELECT DISTINCT s.id AS substation, s.epoch
FROM substation AS s JOIN request AS q ON q.status = 'charging' AND q.substation = s.id AND q.epoch < s.epoch
"""
UNCLAIMED = """
SELECT q.id, q.attempt
FROM request AS q LEFT JOIN substation AS s ON s.id = q.substation
WHERE q.status = 'assigned' AND (s.id IS NULL OR q.bay_epoch IS NULL OR q.bay_epoch <> s.epoch)
"""
TAKE_BACK = f"""
UPDATE request
SET status = 'accepted', reason = 'unclaimed', substation = NULL, changed_at_ms = {{now}},
    wait_until_ms = {_WAIT_ON_RETURN}
FROM {{rows: id, attempt}} AS r
WHERE request.id = r.id AND request.status || '' = 'assigned' AND request.attempt = r.attempt
  AND NOT EXISTS (SELECT 1 FROM substation AS s WHERE s.id = request.substation AND s.epoch = request.bay_epoch)
RETURNING request.id
"""

# --- what a beat writes and asks, once the lease is renewed --------------------------------------------------------

PROGRESS = """
UPDATE request
SET energy_delivered_j = CASE WHEN request.energy_delivered_j < r.delivered THEN r.delivered
                              ELSE request.energy_delivered_j END,
    energy_granted_j = CASE WHEN request.energy_granted_j < r.wanted THEN r.wanted ELSE request.energy_granted_j END
FROM {rows: id, attempt, substation, epoch, delivered, wanted} AS r
WHERE request.id = r.id AND request.status || '' = 'charging' AND request.attempt = r.attempt
  AND request.substation = r.substation AND request.epoch = r.epoch
  AND (request.energy_delivered_j < r.delivered OR request.energy_granted_j < r.wanted) {spared}
RETURNING request.id
"""
GRANT = """
UPDATE request
SET energy_granted_j =
    CASE WHEN request.energy_requested_j < request.energy_delivered_j + request.power_max_w * r.grant_s
         THEN request.energy_requested_j
         ELSE request.energy_delivered_j + request.power_max_w * r.grant_s END
FROM {rows: substation, epoch, grant_s} AS r
WHERE request.status = 'charging' AND request.substation = r.substation AND request.epoch = r.epoch
  AND request.energy_granted_j <= request.energy_delivered_j {spared}
RETURNING request.id
"""
STAND_IN_BAYS = """
UPDATE request SET bay_epoch = r.epoch
FROM {rows: id, attempt, substation, epoch} AS r
WHERE request.id = r.id AND request.status || '' = 'assigned' AND request.attempt = r.attempt
  AND request.substation = r.substation AND (request.bay_epoch IS NULL OR request.bay_epoch <> r.epoch) {spared}
RETURNING request.id
"""
LEAVE_BAYS = """
UPDATE request SET bay_epoch = NULL
FROM {rows: substation} AS r
WHERE request.status = 'assigned' AND request.substation = r.substation AND request.bay_epoch IS NOT NULL
  AND request.id NOT IN (SELECT standing_id FROM {rows: substation, standing_id} AS b) {spared}
RETURNING request.id
"""
ASSIGNED_HERE = """
SELECT q.id, q.attempt, q.substation,
       (q.changed_at_ms <= {now} - :older_than_ms OR q.changed_at_ms > {now}) AS is_overdue
FROM {rows: substation} AS r JOIN request AS q ON q.status = 'assigned' AND q.substation = r.substation
WHERE q.wait_until_ms > {now}
ORDER BY q.priority DESC, q.wait_until_ms, q.arrival
"""
CHARGING_HERE = """
SELECT q.id, q.attempt, q.substation, q.epoch, q.claim_number, q.power_max_w, q.energy_requested_j,
       q.energy_delivered_j, q.energy_granted_j, q.departs_at_ms - {now} AS departs_in_ms, q.stop_asked
FROM {rows: substation, epoch} AS r
JOIN request AS q ON q.status = 'charging' AND q.substation = r.substation AND q.epoch = r.epoch
ORDER BY q.claim_number
"""
APPLIED = """
UPDATE substation
SET applied_number = r.number, applied_limit_w = r.limit_w, applied_operative = r.operative, applied_at_ms = {now}
FROM {rows: id, number, limit_w, operative} AS r
WHERE substation.id = r.id
  AND (substation.applied_number IS NULL OR substation.applied_number <> r.number
       OR substation.applied_limit_w <> r.limit_w OR substation.applied_operative <> r.operative)
RETURNING substation.id
"""
ORDERS = """
SELECT s.id AS substation, s.order_number, s.operative,
       CASE WHEN s.asked_limit_w < s.limit_w AND (s.asked_until_ms IS NULL OR s.asked_until_ms > {now})
            THEN s.asked_limit_w ELSE s.limit_w END AS limit_w
FROM {rows: id} AS r JOIN substation AS s ON s.id = r.id
"""
