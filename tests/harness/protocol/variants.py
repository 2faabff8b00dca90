"""Protocols that are broken in one place each: what the model must find, or it would prove nothing."""

import asyncio
import math
from dataclasses import replace

from harness.protocol.faults import Weather
from harness.protocol.world import ANY_WEATHER, Variant

from balancer import sweeper
from services.ledger import lease_statements, statements
from services.ledger.leases import SilenceWatch
from substations.heartbeat import Host
from substations.session import Session
from substations.substation import Substation


def rewritten(statement, *replacements):
    """`statement` with each (old, new) replaced; an `old` that is not there is an outdated variant."""
    text = statement
    for old, new in replacements:
        assert old in text, f"{old!r} is not in {statement!r}"
        text = text.replace(old, new)
    return {statement: text}


def _own_clock_s():
    return asyncio.get_running_loop().time()


# --- leases and fences ---------------------------------------------------------------------------------------------

_beat, _observe = Host.beat, SilenceWatch.observe


async def _beat_with_a_wall_clock(host, substation):
    """Stamps its wall clock on each lease that it renews, for others to compare with theirs."""
    process = asyncio.get_running_loop().process
    sent_at_s = process.clock.wall_s()
    await _beat(host, substation)
    if process.workers[substation].substation.is_held:
        process.connection.ledger.notes[substation] = sent_at_s


def _observe_wall_clocks(_watch, leases, _replied_at_s, _written_at_s=None):
    process = asyncio.get_running_loop().process
    renewed_at_s = process.connection.ledger.notes
    return {one.substation: process.clock.wall_s() - renewed_at_s.get(one.substation, math.inf) for one in leases}


WALL_CLOCK_LEASE = Variant(
    "wall-clock lease",
    patches=((Host, "beat", _beat_with_a_wall_clock), (SilenceWatch, "observe", _observe_wall_clocks)),
)
NO_SELF_FENCE = Variant("no self-fence", patches=((Substation, "is_fenced", lambda one, _now_s: not one.is_held),))


def _renew_from_the_answer(one, _sent_at_s, lease_s):
    one.fence_at_s = max(one.fence_at_s, _own_clock_s() + lease_s)


FENCE_FROM_REPLY_TIME = Variant("fence from reply time", patches=((Substation, "renew", _renew_from_the_answer),))
REQUEUE_AFTER_2_S = Variant(
    "requeue after 2 s", patches=((sweeper, "is_lost", lambda one, for_s, _: one.holder is not None and for_s >= 2),)
)
NO_SWEEP = Variant("no sweep", patches=((sweeper.Sweeper, "sweep_for_ever", lambda _: asyncio.Event().wait()),))
SWEEP_IGNORES_RENEWALS = Variant(
    "the sweep's compare-and-set ignores renewals",
    rewritten=rewritten(lease_statements.LOSE, ("AND substation.renewals = r.renewals", "")),
)
RELEASED_BEFORE_SESSIONS_STOP = Variant("released before the sessions stop", releases_first=True)

# --- claims and ends ------------------------------------------------------------------------------------------------

BLIND_CLAIM = Variant(
    "blind claim",
    rewritten=rewritten(
        statements.CLAIM,
        (
            "q.status || '' = 'assigned' AND q.attempt = c.attempt AND q.substation = c.substation AND s.epoch",
            "s.epoch",
        ),
        ("request.status || '' = 'assigned' AND request.attempt = r.attempt", "true"),
        ("SET status = 'charging',", "SET status = 'charging', substation = r.substation,"),
    )
    | rewritten(statements.CLAIMED, ("AND q.attempt = r.attempt", "")),
)
BLIND_END = Variant(
    "blind end",
    rewritten=rewritten(
        statements.END,
        (
            (
                "q.status || '' = 'charging' AND q.attempt = c.attempt AND q.substation = c.substation "
                "AND q.epoch = c.epoch"
            ),
            "true",
        ),
        ("AND s.epoch = c.epoch", ""),
        (
            "request.status || '' = 'charging' AND request.attempt = r.attempt\n  AND request.epoch = r.epoch",
            "true",
        ),
    ),
)


def _forget(one, ended, _now_s, *, counts):
    one.sessions.pop(ended.request_id, None)


START_WITHOUT_HISTORY = Variant("start without history", patches=((Substation, "finish", _forget),))
NO_ADOPTION = Variant("no adoption", patches=((Substation, "adopt", lambda *_: 0),))
NO_UNCLAIMED_RULE = Variant(
    "no unclaimed rule",
    rewritten=rewritten(lease_statements.UNCLAIMED, ("WHERE q.status = 'assigned'", "WHERE false")),
)
STOPS_ARE_NOT_HEARD = Variant("stops are not heard", patches=((Substation, "stop", lambda *_: 0),))

# --- grants -------------------------------------------------------------------------------------------------------

_deliver = Session.deliver


def _deliver_ungranted(session, *times):
    session.granted_j = session.claimed.energy_requested_j
    return _deliver(session, *times)


NO_GRANT = Variant("no grant", patches=((Session, "deliver", _deliver_ungranted),))
GRANTS_ADD_UP = Variant(
    "grants that add up",
    rewritten=rewritten(
        lease_statements.PROGRESS,
        (
            "CASE WHEN request.energy_granted_j < r.wanted THEN r.wanted ELSE request.energy_granted_j END",
            "MIN(request.energy_requested_j, request.energy_granted_j + r.wanted - r.delivered)",
        ),
    ),
)
NOTHING_IS_FORFEITED = Variant(
    "an open grant is not forfeited",
    rewritten={
        statement: text
        for whole in (lease_statements.TAKE_OVER, lease_statements.SEND_ELSEWHERE)
        for statement, text in rewritten(whole, ("THEN q.energy_granted_j", "THEN q.energy_delivered_j")).items()
    },
)
A_LOSS_SHORTENS_THE_WAIT = Variant(
    "who is sent back waits no longer",
    rewritten=rewritten(
        lease_statements.SEND_BACK,
        ("{now} + request.wait_max_ms", "request.wait_until_ms"),
    ),
)

# --- where each shows ----------------------------------------------------------------------------------------------

CUT_OFF = Weather(faults=("cut_off",), mean_pauses_s=(4.0,), whiles_s=((4, 20),))
"""Substations lose the ledger, and mostly their lease with it, while they charge."""
SLOW_REPLIES = Weather(
    faults=("cut_off",), mean_pauses_s=(4.0,), whiles_s=((6, 12),), slow={"beat done": (0.5, 1.2, 4.5)}
)
SLOW_SWEEPS = Weather(
    faults=("freeze", "cut_off"), mean_pauses_s=(2.0,), whiles_s=((5.5, 8),), slow={"lose sent": (1, 0.5, 4)}
)
"""The sweep has seen silence, and before its compare-and-set arrives, the substation beats again."""
LATE_ENDS = Weather(
    faults=("cut_off", "step_clock"), mean_pauses_s=(3.0,), whiles_s=((6, 12),), slow={"end sent": (0.8, 6, 14)},
    reaches=(0.2,), departs=1, withdraws=0,
)  # fmt: skip
"""A vehicle leaves; before the ledger hears of it, the lease is over, and by a clock set back the session goes on."""

BROKEN = {
    WALL_CLOCK_LEASE: ANY_WEATHER,
    NO_SELF_FENCE: replace(CUT_OFF, reaches=(0.2,)),
    FENCE_FROM_REPLY_TIME: SLOW_REPLIES,
    REQUEUE_AFTER_2_S: ANY_WEATHER,
    NO_SWEEP: ANY_WEATHER,
    SWEEP_IGNORES_RENEWALS: SLOW_SWEEPS,
    RELEASED_BEFORE_SESSIONS_STOP: ANY_WEATHER,
    BLIND_CLAIM: ANY_WEATHER,
    BLIND_END: LATE_ENDS,
    START_WITHOUT_HISTORY: ANY_WEATHER,
    NO_ADOPTION: ANY_WEATHER,
    NO_UNCLAIMED_RULE: ANY_WEATHER,
    STOPS_ARE_NOT_HEARD: ANY_WEATHER,
    NO_GRANT: replace(CUT_OFF, reaches=(1.0,)),
    GRANTS_ADD_UP: ANY_WEATHER,
    NOTHING_IS_FORFEITED: ANY_WEATHER,
    A_LOSS_SHORTENS_THE_WAIT: ANY_WEATHER,
}
