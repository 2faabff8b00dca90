"""Each broker user can do its work, and is refused everything else."""

import pytest
from harness.broker_rights import OPERATIONS, OWN_WORK, QUEUE, allowed

from services.broker import topology


def test_there_is_a_user_for_each_kind_of_work():
    assert OWN_WORK.keys() | {"operator"} == topology.ROLES.keys()


@pytest.mark.parametrize("role", OWN_WORK)
async def test_a_user_may_do_its_work_and_nothing_else(vhost, role):
    await a_substations_queue(vhost)
    assert await allowed(vhost.amqp_url(role)) == OWN_WORK[role]


async def test_the_operator_may_do_everything(vhost):
    await a_substations_queue(vhost)
    assert await allowed(vhost.amqp_url("operator")) == OPERATIONS.keys()


async def a_substations_queue(vhost) -> None:
    """So that who is refused it is not merely told that there is none."""
    assert "declare a substation's queue" in await allowed(vhost.amqp_url("substation"))
    assert vhost.queue(QUEUE)
