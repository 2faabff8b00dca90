"""Does the faults of the broker that its management API, or its data folder, can do."""

import asyncio
import http.client
import shutil
import urllib.error
from collections.abc import Callable
from urllib.parse import quote

from harness.broker import api
from harness.chaos_kinds import Kind
from harness.chaos_schedule import BINDINGS, BROKER, QUEUES, Fault
from harness.chaos_stack import ChaosStack, Effect

from services.broker import topology
from services.clock import monotonic_s

ANSWERS_WITHIN_S = 60.0
POLL_S = 0.3


async def ask(stack: ChaosStack, method: str, path: str, body: object = None) -> bool:
    """Ask the API until it answers, a broker that is starting too; False where there was nothing to delete.

    What is gone at a later try has been deleted by an earlier one whose answer was lost.
    """
    give_up_at_s = monotonic_s() + ANSWERS_WITHIN_S
    is_first = True
    while True:
        try:
            await asyncio.to_thread(api, stack.broker, method, path, body)
            return True
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError) and (method, error.code) == ("DELETE", 404):
                return not is_first
            if monotonic_s() > give_up_at_s:
                raise
        is_first = False
        await asyncio.sleep(POLL_S)


async def restore_definitions(stack: ChaosStack) -> None:
    """What the broker has had at its boot is there again; the services' own queues and bindings are not among it."""
    await ask(stack, "POST", "definitions", topology.definitions(stack.broker.passwords))


async def restore_all(stack: ChaosStack) -> None:
    """What the services ought to have made anew as well, so that the next phase is judged by itself."""
    await restore_definitions(stack)
    for substation, queue in QUEUES.items():
        await ask(
            stack, "PUT", f"queues/{topology.VHOST}/{queue}", {"durable": True, "arguments": dict(topology.QUORUM)}
        )
        path = f"bindings/{topology.VHOST}/e/{topology.ASSIGNMENTS}/q/{queue}"
        await ask(stack, "POST", path, {"routing_key": substation})


async def wipe(stack: ChaosStack, _fault: Fault) -> Effect:
    """The node comes back with nothing but its definitions."""
    node = stack.parts[BROKER]
    await node.until_it_runs()
    pid = node.process().pid
    node.stay_away()
    await node.kill()
    data = stack.broker.data / "mnesia"
    await asyncio.to_thread(shutil.rmtree, data)
    data.mkdir()
    node.come()
    await node.until_it_runs()
    return Effect(f"process {pid} was killed, and its data deleted")


async def raise_alarm(stack: ChaosStack, fault: Fault) -> Effect:
    await stack.alarm(on=True)
    try:
        await asyncio.sleep(fault.for_s)
        is_raised = await asyncio.to_thread(_is_alarmed, stack)
    finally:
        await stack.alarm(on=False)
    return Effect("the broker tells of its alarm" if is_raised else "")


def _is_alarmed(stack: ChaosStack) -> bool:
    try:
        api(stack.broker, "GET", "health/checks/local-alarms")
    except urllib.error.HTTPError as error:
        return error.code == 503
    return False


def deleting(path: Callable[[str], str], *, is_services_own: Callable[[str], bool] = lambda _: False):
    """A fault that deletes what is at that path, and restores it after a time unless a service ought to do so."""

    async def inflict(stack: ChaosStack, fault: Fault) -> Effect:
        [target] = fault.targets
        effect = Effect("it was deleted" if await ask(stack, "DELETE", path(target)) else "")
        if is_services_own(target):
            return effect
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            await restore_definitions(stack)
        return effect

    return inflict


def _binding_path(target: str) -> str:
    source, _, queue = target.partition(">")
    key = BINDINGS[target]
    return f"bindings/{topology.VHOST}/e/{source}/q/{queue}/{quote(key) or '~'}"


INFLICT = {
    Kind.BROKER_WIPE: wipe,
    Kind.ALARM: raise_alarm,
    Kind.VHOST: deleting(lambda _: f"vhosts/{topology.VHOST}"),
    Kind.EXCHANGE: deleting(lambda exchange: f"exchanges/{topology.VHOST}/{exchange}"),
    Kind.QUEUE: deleting(
        lambda queue: f"queues/{topology.VHOST}/{queue}", is_services_own=lambda queue: queue in QUEUES.values()
    ),
    Kind.BINDING: deleting(_binding_path, is_services_own=lambda target: bool(BINDINGS[target])),
    Kind.RIGHTS: deleting(lambda user: f"permissions/{topology.VHOST}/{user}"),
}
