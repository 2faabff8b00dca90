import pytest
from aiohttp.test_utils import make_mocked_request

from gateway.bodies import ChargeRequest, read_idempotency_key
from gateway.listing import LIMIT_DEFAULT, NEWEST, ListQuery, read_list_query
from gateway.problems import Problem
from services.ledger.states import Status


def query(text):
    return read_list_query(make_mocked_request("GET", f"/charge-requests?{text}"))


def key(*values):
    return read_idempotency_key(make_mocked_request("POST", "/", [("Idempotency-Key", value) for value in values]))


def test_without_parameters_the_newest_are_listed():
    assert query("") == ListQuery(None, None, LIMIT_DEFAULT, NEWEST)


def test_all_parameters_are_read():
    assert query("status=charging&substation=north&limit=7&cursor=12") == ListQuery(Status.CHARGING, "north", 7, 12)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("status=asleep", "status"),
        ("substation=a/b", "substation"),
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=-1", "limit"),
        ("limit=1e2", "limit"),
        ("cursor=x", "cursor"),
        ("cursor=9223372036854775808", "cursor"),
        ("cursor=%D9%A3", "cursor"),
        ("page=2", "page"),
    ],
)
def test_a_faulty_parameter_is_named(text, field):
    with pytest.raises(Problem) as refused:
        query(text)

    assert refused.value.status == 422
    assert refused.value.members["errors"][0]["field"] == field


def test_a_key_is_read():
    assert key() is None
    assert key("order-17") == "order-17"
    assert key("x" * 255) == "x" * 255


@pytest.mark.parametrize("values", [[""], ["two words"], ["x" * 256], ["naïve"], ["a", "b"]])
def test_a_faulty_key_is_refused(values):
    with pytest.raises(Problem) as refused:
        key(*values)

    assert refused.value.status == 400


def test_the_same_wishes_have_the_same_digest_and_others_another():
    one = ChargeRequest.model_validate({"vehicle_id": "EV-1", "energy_kwh": 10})

    assert one.digest() == ChargeRequest.model_validate({"energy_kwh": 10.0, "vehicle_id": "EV-1"}).digest()
    assert one.digest() != ChargeRequest.model_validate({"vehicle_id": "EV-2", "energy_kwh": 10}).digest()
