from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import pytest
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.bodies import BODY_MAX_BYTES, ChargeRequest, checked, read_json
from gateway.charge_requests import describe
from gateway.problems import Problem
from services.ledger.records import RequestRecord
from services.ledger.states import Status, Transition

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def to_ledger(body, *, speed=60.0, wait_max_s=600.0):
    return checked(ChargeRequest, body).to_ledger("id-1", now=NOW, speed=speed, wait_max_s=wait_max_s)


def fields_at_fault(body):
    with pytest.raises(Problem) as caught:
        to_ledger(body)
    problem = caught.value
    assert problem.status == HTTPStatus.UNPROCESSABLE_ENTITY
    named = [fault["field"] for fault in problem.members["errors"]]
    assert all(field in problem.detail for field in named)
    assert all(fault["detail"] for fault in problem.members["errors"])
    return named


def test_a_vehicle_is_all_that_is_needed():
    new = to_ledger({"vehicle_id": "EV-1"})

    assert (new.request_id, new.vehicle_id) == ("id-1", "EV-1")
    assert (new.energy_requested_j, new.power_max_w) == (36_000_000, 11_000)
    assert (new.priority, new.zone) == (0, None)
    assert (new.depart_by_ms, new.departs_at_ms, new.wait_max_ms) == (None, None, 600_000)


def test_kilowatts_and_kilowatt_hours_become_base_units():
    new = to_ledger({"vehicle_id": "EV-1", "energy_kwh": 22.5, "max_power_kw": 3.7, "zone": "west", "priority": 9})

    assert (new.energy_requested_j, new.power_max_w) == (81_000_000, 3_700)
    assert (new.zone, new.priority) == ("west", 9)


@given(st.floats(0, 1_000, exclude_min=True), st.floats(0, 1_000, exclude_min=True))
@example(1e-9, 1e-9)
def test_any_amount_is_kept_to_half_a_unit_and_never_becomes_nothing(energy_kwh, power_kw):
    new = to_ledger({"vehicle_id": "EV-1", "energy_kwh": energy_kwh, "max_power_kw": power_kw})

    assert new.energy_requested_j == pytest.approx(max(1, energy_kwh * 3.6e6), abs=0.51)
    assert new.power_max_w == pytest.approx(max(1, power_kw * 1e3), abs=0.51)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("vehicle_id", [None, "", "x" * 65, 7, "two words", "EV\r\n1", "🚗", "EV\x00", "EV-1\n", ["EV-1"]]),
        ("energy_kwh", [0, -1, "5", True, 10**9, 1_000.1, None, [], 10**400, 1e-400, float("nan"), float("inf")]),
        ("max_power_kw", [0, -1, "5", False, 10**9, None, {}]),
        (
            "depart_by",
            [
                "2026-05-01T11:59:59Z",
                "2026-05-01T12:00:00Z",
                "2026-05-01T13:00:00+02:00",
                "2026-05-01T18:00:00",
                "2026-05-02",
                "18:00:00Z",
                "tomorrow",
                "",
                "2026-13-01T00:00:00Z",
                "4102444800",
                "4102444800.5",
                "-1",
                4102444800,
                4.1e9,
                True,
                [],
                "9999-12-31T23:59:59-02:00",
                "9999-12-31T23:59:59.9999Z",
                "0001-01-01T00:00:00+14:00",
            ],
        ),
        ("zone", ["", "x" * 65, 5, [], "we\x00st", "west\n", "\x1b[2J"]),
        ("priority", [-1, 10, 1.5, 1.0, "1", True, None]),
        ("energy_kw", [5]),
        ("request_id", ["mine"]),
    ],
)
def test_a_faulty_field_is_named(field, values):
    for value in values:
        assert fields_at_fault({"vehicle_id": "EV-1", field: value}) == [field], value


def test_every_faulty_field_is_named():
    body = {"energy_kwh": 0, "max_power_kw": "11", "priority": 10, "depart_by": 5, "zone": "", "colour": "red"}

    assert set(fields_at_fault(body)) == {"vehicle_id", *body}


@pytest.mark.parametrize("body", [None, [], "text", 5, True, [{"vehicle_id": "EV-1"}]])
def test_a_body_that_is_no_object_is_named_as_a_whole(body):
    assert fields_at_fault(body) == ["body"]


@pytest.mark.parametrize("body", [{"vehicle_id": "EV-1", "zone": None, "depart_by": None}])
def test_null_stands_for_no_zone_and_no_departure(body):
    assert to_ledger(body) == to_ledger({"vehicle_id": "EV-1"})


@pytest.mark.parametrize("depart_by", ["2026-05-01T13:00:00Z", "2026-05-01T15:00:00+02:00", "2026-05-01t13:00:00.000z"])
@pytest.mark.parametrize(("speed", "ahead_s"), [(1.0, 3600), (60.0, 60), (0.5, 7200)])
def test_a_departure_becomes_a_wall_deadline_by_the_speed_and_is_itself_kept(depart_by, speed, ahead_s):
    new = to_ledger({"vehicle_id": "EV-1", "depart_by": depart_by}, speed=speed)

    assert new.depart_by_ms == round((NOW + timedelta(hours=1)).timestamp() * 1000)
    assert new.departs_at_ms == round((NOW.timestamp() + ahead_s) * 1000)


@given(st.timedeltas(timedelta(milliseconds=1), timedelta(days=365_000)), st.floats(0.01, 100_000))
def test_a_departure_lies_ahead_on_the_wall_in_proportion(ahead, speed):
    new = to_ledger({"vehicle_id": "EV-1", "depart_by": (NOW + ahead).isoformat()}, speed=speed)

    assert new.departs_at_ms - NOW.timestamp() * 1000 == pytest.approx(ahead.total_seconds() * 1000 / speed, abs=2)


@pytest.mark.parametrize(
    ("depart_by", "told"),
    [
        ("9998-12-31T23:59:59-14:00", "9999-01-01T13:59:59.000Z"),
        ("2026-05-01T14:00:01.25+02:00", "2026-05-01T12:00:01.250Z"),
    ],
)
def test_what_was_accepted_can_be_told_again_in_the_clients_units(depart_by, told):
    new = to_ledger({"vehicle_id": "EV-1", "energy_kwh": 7.7, "max_power_kw": 3.7, "depart_by": depart_by})
    record = RequestRecord(
        request_id=new.request_id,
        vehicle_id=new.vehicle_id,
        status=Status.ACCEPTED,
        substation=None,
        attempt=0,
        priority=new.priority,
        zone=new.zone,
        power_max_w=new.power_max_w,
        energy_requested_j=new.energy_requested_j,
        energy_delivered_j=1_800_000,
        depart_by_ms=new.depart_by_ms,
        accepted_at_ms=0,
        wait_until_ms=600_000,
        position=3,
        decision=None,
        history=(Transition(5, Status.ACCEPTED, None, 0, None, "submitted"),),
    )

    answer = describe(record, 12.34)

    assert (answer["energy_requested_kwh"], answer["max_power_kw"], answer["energy_delivered_kwh"]) == (7.7, 3.7, 0.5)
    assert (answer["depart_by"], answer["wait_until"]) == (told, "1970-01-01T00:10:00.000Z")
    assert (answer["position"], answer["expected_wait_s"]) == (3, 12.3)
    assert answer["history"] == [
        {
            "at": "1970-01-01T00:00:00.005Z",
            "status": "accepted",
            "substation": None,
            "attempt": 0,
            "reason": "submitted",
        }
    ]


class FakeRequest:
    """What `read_json` needs of a request: a body and what it calls itself."""

    def __init__(self, body, content_type="application/json"):
        self._body = body
        self.content_type = content_type

    async def read(self):
        if len(self._body) > BODY_MAX_BYTES:
            raise web.HTTPRequestEntityTooLarge(BODY_MAX_BYTES, len(self._body))
        return self._body


async def test_a_sound_body_is_read():
    assert await read_json(FakeRequest(b'{"vehicle_id": "EV-1"}')) == {"vehicle_id": "EV-1"}


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"energy_kwh": NaN}', "application/json", 400),
        (b'{"energy_kwh": 1e999}', "application/json", 400),
        (b'{"a": 1, "a": 2}', "application/json", 400),
        (b'"\\ud800"', "application/json", 400),
        (b"[" * 8_000, "application/json", 400),
        (b"9" * 5_000, "application/json", 400),
        (b" " * (BODY_MAX_BYTES + 1), "application/json", 413),
        (b"{}", "text/plain", 415),
        (b"{}", "application/octet-stream", 415),
    ],
)
async def test_a_body_that_cannot_be_read_is_refused_with_its_own_status(body, content_type, status):
    with pytest.raises(Problem) as caught:
        await read_json(FakeRequest(body, content_type))

    assert caught.value.status == status
