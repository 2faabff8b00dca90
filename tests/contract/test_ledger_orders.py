"""An operator's orders in the ledger: what a substation hears of them, and when they count as applied."""

from harness.ledger import HOLDER, registration

from services.ledger.records import Beat, Orders, OrderState
from services.messages import Hint

OWN_W = 304_000


async def state(ledger, substation="north"):
    return next(one for one in await ledger.operating.orders() if one.substation == substation)


async def heard(ledger, applied=None):
    [answer] = await ledger.tenancy.beat([Beat("north", 1, HOLDER, (), (), 0, applied)], 0)
    return answer.orders


async def test_without_an_order_the_substations_own_limit_holds(ledger):
    assert await heard(ledger) == Orders(0, OWN_W, operative=True)
    assert await state(ledger) == OrderState("north", OWN_W, None, None, True, None, None)


async def test_a_limit_is_heard_at_the_next_beat_and_applied_once_the_substation_says_so(ledger):
    assert await ledger.operating.order_limit("north", 50_000, None)
    orders = await heard(ledger)
    assert orders == Orders(1, 50_000, operative=True)
    asked = await state(ledger)
    assert (asked.asked_limit_w, asked.applied_at_ms) == (50_000, None)

    await heard(ledger, Orders(0, OWN_W, operative=True))
    assert (await state(ledger)).applied_at_ms is None
    await heard(ledger, orders)
    applied = await state(ledger)
    assert applied.applied_at_ms >= asked.asked_at_ms

    await heard(ledger, orders)
    assert await state(ledger) == applied
    assert (await state(ledger, "south")).asked_limit_w is None


async def test_the_same_limit_again_is_a_new_order(ledger):
    for number in (1, 2):
        await ledger.operating.order_limit("north", 50_000, None)
        orders = await heard(ledger)
        assert orders.number == number
        assert (await state(ledger)).applied_at_ms is None
        await heard(ledger, orders)
        assert (await state(ledger)).applied_at_ms is not None


async def test_a_limit_lapses_by_itself(ledger, execute):
    [now_ms] = {(await ledger.intake.request("clock")).accepted_at_ms for _ in [await ledger.accepted("clock")]}
    await ledger.operating.order_limit("north", 50_000, now_ms + 600_000)
    assert (await heard(ledger)).limit_w == 50_000
    assert (await state(ledger)).until_ms == now_ms + 600_000

    execute("UPDATE substation SET asked_until_ms = asked_at_ms - 1 WHERE id = 'north'")

    assert (await heard(ledger)).limit_w == OWN_W
    assert ((await state(ledger)).asked_limit_w, (await state(ledger)).until_ms) == (None, None)


async def test_a_limit_is_lifted_and_none_is_above_the_substations_own(ledger):
    await ledger.operating.order_limit("north", 0, None)
    assert (await heard(ledger)).limit_w == 0
    assert not await ledger.operating.order_limit("north", OWN_W + 1, None)
    assert (await heard(ledger)).limit_w == 0

    assert await ledger.operating.order_limit("north", None, None)
    assert (await heard(ledger)).limit_w == OWN_W


async def test_orders_for_a_stranger_are_refused(ledger):
    assert not await ledger.operating.order_limit("nowhere", 1, None)
    assert not await ledger.operating.order_status("nowhere", operative=False)


async def test_a_substation_that_is_drained_claims_nobody_until_it_returns(ledger):
    await ledger.assigned("r")
    await ledger.operating.order_status("north", operative=False)

    assert await ledger.claim([Hint("r", 1)], "north", 1) == []
    assert (await heard(ledger)).operative is False

    await ledger.operating.order_status("north", operative=True)
    assert len(await ledger.claim([Hint("r", 1)], "north", 1)) == 1


async def test_orders_outlive_the_tenure(ledger):

    await ledger.operating.order_limit("north", 50_000, None)
    await ledger.operating.order_status("north", operative=False)
    await ledger.take(registration("north"))

    [answer] = await ledger.tenancy.beat([Beat("north", 2, HOLDER, (), (), 0)], 0)

    assert answer.orders == Orders(2, 50_000, operative=False)
