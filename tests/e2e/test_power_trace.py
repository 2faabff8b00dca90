"""A rush on a live stack whose limits fall while vehicles charge: every tick of every substation keeps the promises."""

from collections import Counter
from datetime import UTC, datetime, timedelta

from harness.stack import started, until
from harness.tick_trace import breaches, logged

from services.ledger.states import Reason, Status

SPEED = 600
REQUESTS = 48
FLOOR_W = 1_380
SUBSTATIONS = ("north", "east", "south", "west")


def grid(limit_kw: float) -> str:
    stations = (
        f'[[substation]]\nid = "{one}"\nrated_kva = 100\nlimit_kw = {limit_kw}\nconnectors = 14\n'
        for one in SUBSTATIONS
    )
    return 'name = "scarce"\n' + "".join(stations)


def test_every_tick_of_a_rush_keeps_limit_connectors_and_floor_and_leaves_no_power_idle(tmp_path, port, vhost):
    ticks, grid_file = tmp_path / "ticks", tmp_path / "grid.toml"
    grid_file.write_text(grid(40))
    settings = {
        "EVENLOAD_AMQP_URL": vhost.amqp_url("operator"),
        "EVENLOAD_GRID": str(grid_file),
        "EVENLOAD_SPEED": str(SPEED),
        "EVENLOAD_SUBSTATION_TICK_LOG": str(ticks),
    }
    with started(tmp_path / "data", port, **settings) as stack:
        stack.until_up()
        leaves = (datetime.now(UTC) + timedelta(seconds=12 * SPEED)).isoformat()
        request_ids = stack.submit(REQUESTS - 8, over_s=1, energy_kwh=3, max_power_kw=11)
        request_ids += stack.submit(8, energy_kwh=25, max_power_kw=3.7, depart_by=leaves)
        until(lambda: not stack.listed(Status.ACCEPTED) | stack.listed(Status.ASSIGNED), "claims")

        # Less than the floors of a dozen sessions.
        for one in SUBSTATIONS:
            assert stack.request("PUT", f"/substations/{one}/limit", {"power_kw": 5})[0] == 202
        stack.until_ended(request_ids)
        reasons = Counter(stack.history(one)[-1].reason for one in request_ids)

    logs = logged(ticks)
    for name, trace in logs.items():
        assert breaches(trace, SPEED) == [], name
    assert {name.rpartition("-")[0] for name in logs} == set(SUBSTATIONS)
    assert reasons.keys() == {Reason.ENERGY_LIMIT_REACHED, Reason.EV_DISCONNECTED}
    all_ticks = [tick for trace in logs.values() for tick in trace]
    paused = sum(one.paused for tick in all_ticks for one in tick.sessions)
    print(f"{len(all_ticks)} ticks, {paused} paused sessions in them, ends {dict(reasons)}")
    assert {tick.limit_w for tick in all_ticks} == {40_000, 5_000}
    assert {tick.floor_w for tick in all_ticks} == {FLOOR_W}
    assert paused > 0
