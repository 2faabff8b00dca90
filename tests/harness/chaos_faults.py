"""Does the faults to services and their connections; each returns once it is healed, with what was wrong, if anything.

Faults of the broker and of the ledger are in modules of their own; `INFLICT` knows all.
"""

import asyncio
import contextlib
import resource
import signal
from collections.abc import Awaitable, Callable, Mapping

import psutil
from harness import chaos_faults_broker, chaos_faults_ledger
from harness.chaos_kinds import Kind
from harness.chaos_schedule import Fault
from harness.chaos_stack import ChaosStack

from services.local.ports import free_ports

TWIN_ENDS_WITHIN_S = 30.0
MISCONFIGURED = 2

Inflict = Callable[[ChaosStack, Fault], Awaitable[str | None]]


async def kill(stack: ChaosStack, fault: Fault) -> None:
    """All of the targets at once, before anybody may notice; healed once they run again."""
    parts = [stack.parts[one] for one in fault.targets]
    for part in parts:
        part.signal(signal.SIGKILL)
    for part in parts:
        await part.kill()
        await part.until_it_runs()


async def freeze(stack: ChaosStack, fault: Fault) -> None:
    part = stack.parts[fault.targets[0]]
    part.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(fault.for_s)
    finally:
        part.signal(signal.SIGCONT)


async def leave(stack: ChaosStack, fault: Fault) -> str | None:
    part = stack.parts[fault.targets[0]]
    try:
        words = await part.leave()
        await asyncio.sleep(fault.for_s)
    finally:
        part.come()
    await part.until_it_runs()
    return words


async def cut(stack: ChaosStack, fault: Fault) -> None:
    await asyncio.to_thread(stack.proxies[fault.targets[0]].cut)


async def stall(stack: ChaosStack, fault: Fault) -> None:
    proxy = stack.proxies[fault.targets[0]]
    await asyncio.to_thread(proxy.stall)
    try:
        await asyncio.sleep(fault.for_s)
    finally:
        await asyncio.to_thread(proxy.heal)


async def use_up_descriptors(stack: ChaosStack, fault: Fault) -> None:
    """A process that dies meanwhile comes back without the limit."""
    process = stack.parts[fault.targets[0]].process()
    with contextlib.suppress(psutil.NoSuchProcess, AttributeError):
        before = process.rlimit(resource.RLIMIT_NOFILE)
        process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds(), before[1]))
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            process.rlimit(resource.RLIMIT_NOFILE, before)


async def start_a_twin(stack: ChaosStack, fault: Fault) -> str | None:
    """A second process under the same ids must not get in while the first lives."""
    [port] = free_ports(1)
    part = stack.parts[fault.targets[0]]
    changes = {"EVENLOAD_INSTANCE": f"{fault.targets[0]}-twin", "EVENLOAD_ADMIN_PORT": str(port)}
    with part.spec.log.with_name("twins.log").open("ab") as log:
        twin = await asyncio.create_subprocess_exec(
            *part.spec.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**part.environment, **changes},
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(TWIN_ENDS_WITHIN_S):
            code = await twin.wait()
    except TimeoutError:
        twin.kill()
        await twin.wait()
        return f"the twin was still there after {TWIN_ENDS_WITHIN_S:g} s"
    return None if code == MISCONFIGURED else f"the twin ended with {code}, not with {MISCONFIGURED}"


INFLICT: Mapping[Kind, Inflict] = {
    Kind.KILL: kill,
    Kind.KILL_SEVERAL: kill,
    Kind.FREEZE: freeze,
    Kind.LEAVE: leave,
    Kind.CUT: cut,
    Kind.STALL: stall,
    Kind.DESCRIPTORS: use_up_descriptors,
    Kind.TWIN: start_a_twin,
    Kind.BROKER_KILL: kill,
    Kind.BROKER_FREEZE: freeze,
    Kind.BROKER_LEAVE: leave,
    **chaos_faults_broker.INFLICT,
    **chaos_faults_ledger.INFLICT,
}
