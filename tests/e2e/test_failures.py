"""One fault at a time on a running stack, by the numbers of the failure model; crash points make the moment certain."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness.beside import beside, island
from harness.broker import api
from harness.stack import Stack, readiness, started, until

from services.broker import topology
from services.local.ports import free_ports

KILLED = -signal.SIGKILL
SPEED = 600


@pytest.fixture(scope="module")
def stack(tmp_path_factory, module_vhost):
    settings = {"EVENLOAD_SPEED": str(SPEED), "EVENLOAD_AMQP_URL": module_vhost.amqp_url("operator")}
    with started(tmp_path_factory.mktemp("failures") / "data", free_ports(1)[0], **settings) as one:
        yield one.until_up()


def ids_of_vehicle(stack: Stack, vehicle_id: str) -> list[str]:
    items = stack.get("/charge-requests?limit=500")[1]["items"]
    return [line["request_id"] for line in items if line["vehicle_id"] == vehicle_id]


def test_failure_1_a_gateway_killed_between_commit_and_reply_leaves_one_request_for_who_tries_again(stack):
    body, key = {"vehicle_id": "EV-row-1", "energy_kwh": 1}, {"Idempotency-Key": "row-1"}
    with beside(stack, "gateway", EVENLOAD_CRASH_POINT="gateway.committed") as doomed:
        with pytest.raises(OSError):
            doomed.request("POST", "/charge-requests", body, **key)
        assert doomed.process.wait(10) == KILLED
    [committed] = ids_of_vehicle(stack, "EV-row-1")

    status, answer = stack.request("POST", "/charge-requests", body, **key)

    assert (status, answer["request_id"]) == (202, committed)
    stack.until_ended([committed])
    assert ids_of_vehicle(stack, "EV-row-1") == [committed]


@pytest.mark.parametrize("place", ["gateway.replied", "gateway.published"])
def test_failure_2_a_gateway_killed_behind_its_reply_loses_nothing(stack, place):
    with beside(stack, "gateway", EVENLOAD_CRASH_POINT=place) as doomed:
        status, answer = doomed.post(vehicle_id="EV-row-2", energy_kwh=1)
        assert status == 202
        assert doomed.process.wait(10) == KILLED

    stack.until_ended([answer["request_id"]])


def test_failure_3_concurrent_retries_on_two_gateways_are_one_request(stack):
    body, key = {"vehicle_id": "EV-row-3", "energy_kwh": 1}, {"Idempotency-Key": "row-3"}
    with beside(stack, "gateway") as other, ThreadPoolExecutor(32) as clients:
        answers = list(
            clients.map(
                lambda number: (stack, other)[number % 2].request("POST", "/charge-requests", body, **key), range(64)
            )
        )

    assert {status for status, _ in answers} == {202}
    assert len({json.dumps(answer) for _, answer in answers}) == 1
    assert ids_of_vehicle(stack, "EV-row-3") == [answers[0][1]["request_id"]]
    stack.until_ended([answers[0][1]["request_id"]])


@pytest.mark.parametrize("place", ["balancer.chosen", "balancer.assigned", "balancer.published"])
def test_failure_7_a_balancer_killed_on_the_way_from_choice_to_ack_doubles_and_loses_nothing(stack, place):
    with beside(stack, "balancer", EVENLOAD_CRASH_POINT=place) as doomed:
        request_ids = []
        while doomed.process.poll() is None:  # it shares the intake with the stack's own
            request_ids += stack.submit(1, energy_kwh=1)
        assert doomed.process.returncode == KILLED

    stack.until_ended(request_ids)


CRASHES_OF_A_SUBSTATION = (
    "substation.claimed",
    "substation.started",
    "substation.ended",
    "heartbeat.sent:6",
    "heartbeat.applied:6",
)


@pytest.fixture(scope="module")
def crashed(stack):
    """What became of requests whose substation was killed at each place; all at once, because each has its own zone."""

    def crash(number: int, place: str) -> list[dict]:
        substation = island(stack, f"island-{number}")
        request_ids = stack.submit(3, energy_kwh=4, max_power_kw=11, zone=f"island-{number}")
        with beside(stack, "substations", **substation, EVENLOAD_CRASH_POINT=place) as doomed:
            assert doomed.process.wait(60) == KILLED
        with beside(stack, "substations", **substation):
            stack.until_ended(request_ids)
        return [stack.get(f"/charge-requests/{one}")[1] for one in request_ids]

    with ThreadPoolExecutor(len(CRASHES_OF_A_SUBSTATION)) as pool:
        runs = [pool.submit(crash, *one) for one in enumerate(CRASHES_OF_A_SUBSTATION)]
    return dict(zip(CRASHES_OF_A_SUBSTATION, runs, strict=True))


@pytest.mark.parametrize("place", CRASHES_OF_A_SUBSTATION)
def test_failure_9_a_substation_killed_at_any_step_goes_on_with_its_sessions_at_its_return(crashed, place):
    answers = crashed[place].result()

    assert [(one["status"], one["energy_delivered_kwh"]) for one in answers] == [("completed", 4)] * 3


@pytest.mark.parametrize("place", ["sweep.read", "sweep.swept"])
def test_failure_10_a_sweep_that_is_killed_is_done_by_the_next_balancer(stack, place):
    own = stack.service("balancer")
    with beside(stack, "substations", **island(stack, "lost")) as lost:
        request_ids = stack.submit(3, energy_kwh=100, max_power_kw=11, zone="lost")
        stack.until_charging(request_ids)
        own.suspend()
        try:
            with beside(stack, "balancer", EVENLOAD_CRASH_POINT=place) as doomed:
                lost.process.kill()
                assert doomed.process.wait(60) == KILLED
        finally:
            own.resume()
    until(
        lambda: all(
            stack.get(f"/charge-requests/{one}")[1]["history"][-1]["reason"] == "substation_lost" for one in request_ids
        ),
        "the end of the sweep",
    )
    for one in request_ids:  # their zone is gone, and what they got stays told
        assert stack.request("DELETE", f"/charge-requests/{one}")[0] == 200
    stack.until_ended(request_ids)
    assert {stack.get(f"/charge-requests/{one}")[1]["status"] for one in request_ids} == {"stopped"}


def test_failure_27_of_a_cancel_that_races_claim_and_finish_one_wins_and_the_answer_says_which(stack):
    later = ("assigned", "charging", "completed")

    def race(number: int) -> tuple[str, set[tuple[int, str]]]:
        gateway = (stack, other)[number % 2]
        path = f"/charge-requests/{gateway.post(vehicle_id=f'EV-row-27-{number}', energy_kwh=1)[1]['request_id']}"
        # At once, on its way, in the midst of its session of half a second, and at its end.
        reached = (("accepted", *later), later, later[1:], later[2:])[number % 4]
        until(lambda: gateway.get(path)[1].get("status") in reached, reached[0])
        with ThreadPoolExecutor(2) as both:
            answers = [both.submit(one.request, "DELETE", path) for one in (stack, other)]
        return path, {(one.result()[0], one.result()[1]["status"]) for one in answers}

    with beside(stack, "gateway") as other, ThreadPoolExecutor(16) as clients:
        told = dict(clients.map(race, range(60)))

    stack.until_ended([path.rpartition("/")[2] for path in told])
    for path, answers in told.items():
        history = [line["status"] for line in stack.get(path)[1]["history"]]
        end, was_charged = history[-1], "charging" in history
        for status, said in answers:
            match said:
                case "cancelled":
                    assert (status, end, was_charged) == (200, "cancelled", False), (path, history)
                case "charging":  # the stop was asked for; the session may have had its energy before it was heard
                    assert (status, end in {"stopped", "completed"}, was_charged) == (202, True, True), (path, history)
                case _:
                    assert (status, said) == (200, end), (path, history)
    assert len({said for answers in told.values() for _, said in answers}) > 1


def test_failure_25_services_told_to_end_under_load_turn_unready_settle_and_leave_with_0(stack):
    victims = ("gateway", "balancer", "substation-north")
    said_before = {one: len(stack.said_by(one)) for one in victims}
    assert {readiness(stack.admin_port(one))[0] for one in victims} == {200}
    with stack.rush(200, over_s=6.0, energy_kwh=2, max_power_kw=11) as rush:
        for number, victim in enumerate(victims):
            rush.until_accepted(40 * (number + 1))
            assert not rush.is_over

            stack.service(victim).terminate()
            stack.until_said(rf"{victim} died \(exit code 0\)", within_s=10)
    request_ids = rush.ids()

    def events(victim: str) -> list[str]:
        return [line["event"] for line in stack.said_by(victim)[said_before[victim] :]]

    for victim in victims:
        until(lambda victim=victim: "service_ready" in events(victim), f"{victim} has started again")
        said = events(victim)
        assert "drain_cut_short" not in said
        assert said.index("drain_started") < said.index("service_drained") < said.index("service_ready")
    stack.until_ended(request_ids)
    for victim in victims:
        until(lambda victim=victim: readiness(stack.admin_port(victim))[0] == 200, f"{victim} ready again")


def test_a_substation_whose_binding_is_gone_gets_its_requests_by_its_heartbeat_and_floods_no_log(stack, module_vhost):
    binding = f"bindings/{module_vhost.name}/e/{topology.ASSIGNMENTS}/q/{topology.substation_queue('north')}"
    began = len(stack.said_by("balancer"))
    api(module_vhost.broker, "DELETE", f"{binding}/north")
    try:
        request_ids = stack.submit(100, over_s=3, energy_kwh=1, max_power_kw=11)
        stack.until_ended(request_ids)
    finally:
        api(module_vhost.broker, "POST", binding, {"routing_key": "north"})

    histories = [stack.history(one) for one in request_ids]
    assert {history[-1].status for history in histories} == {"completed"}
    assert max(history[-1].attempt for history in histories) <= 3
    assert {line.substation for history in histories for line in history} >= {"north", "south"}
    told = [line for line in stack.said_by("balancer")[began:] if line["event"] == "substation_not_reached"]
    assert {line["substation"] for line in told} <= {"north"}
    assert len(told) <= 2  # one in 30 s
