"""Does the faults to services and their connections; each returns once it is healed, with what it had for an effect.

Faults of the broker and of the ledger are in modules of their own; `INFLICT` knows all.
"""

import asyncio
import resource
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import psutil
from harness import chaos_faults_broker, chaos_faults_ledger
from harness.chaos_kinds import Kind
from harness.chaos_part import until_all_run
from harness.chaos_schedule import Fault
from harness.chaos_stack import ChaosStack, Effect
from harness.tcp_proxy import TcpProxy

from services.clock import monotonic_s
from services.local.ports import free_ports

TWIN_ENDS_WITHIN_S = 30.0
CONNECTED_WITHIN_S = 30.0
POLL_S = 0.1
MISCONFIGURED = 2

Inflict = Callable[[ChaosStack, Fault], Awaitable[Effect]]


async def kill(stack: ChaosStack, fault: Fault) -> Effect:
    """All of the targets at once, before anybody may notice; healed once all run again."""
    parts = [stack.parts[one] for one in fault.targets]
    await until_all_run(parts)
    killed = [part.process().pid for part in parts]
    await asyncio.gather(*[part.kill() for part in parts])
    await until_all_run(parts)
    return Effect(f"processes killed: {killed}")


async def freeze(stack: ChaosStack, fault: Fault) -> Effect:
    part = stack.parts[fault.targets[0]]
    await part.until_it_runs()
    process = part.process()
    part.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(fault.for_s)
        is_stopped = process.is_running() and process.status() == psutil.STATUS_STOPPED
    finally:
        part.signal(signal.SIGCONT)
    return Effect(f"process {process.pid} was stopped" if is_stopped else "")


async def leave(stack: ChaosStack, fault: Fault) -> Effect:
    part = stack.parts[fault.targets[0]]
    await part.until_it_runs()
    pid = part.process().pid
    try:
        words = await part.leave()
        await asyncio.sleep(fault.for_s)
    finally:
        part.come()
    await part.until_it_runs()
    return Effect(f"process {pid} left", words)


async def cut(stack: ChaosStack, fault: Fault) -> Effect:
    proxy = stack.proxies[fault.targets[0]]
    connections = await _until_connected(proxy)
    await asyncio.to_thread(proxy.cut)
    return Effect(f"{connections} connections were reset" if connections else "")


async def stall(stack: ChaosStack, fault: Fault) -> Effect:
    proxy = stack.proxies[fault.targets[0]]
    connections = await _until_connected(proxy)
    await asyncio.to_thread(proxy.stall)
    try:
        await asyncio.sleep(fault.for_s)
    finally:
        await asyncio.to_thread(proxy.heal)
    return Effect(f"{connections} connections carried nothing" if connections else "")


async def _until_connected(proxy: TcpProxy) -> int:
    """How many connections are open, once there are any; 0 where none comes."""
    give_up_at_s = monotonic_s() + CONNECTED_WITHIN_S
    while not proxy.open_connections and monotonic_s() < give_up_at_s:
        await asyncio.sleep(POLL_S)
    return proxy.open_connections


async def use_up_descriptors(stack: ChaosStack, fault: Fault) -> Effect:
    """From the next descriptor on none can be opened; a process that dies meanwhile comes back without the limit."""
    [target] = fault.targets
    await stack.parts[target].until_it_runs()
    process = stack.parts[target].process()
    try:
        before = process.rlimit(resource.RLIMIT_NOFILE)
        limit = _lowest_free_descriptor(process.pid)
        process.rlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
        try:
            with stack.connection_to(target):  # which it cannot accept
                await asyncio.sleep(fault.for_s)
        finally:
            process.rlimit(resource.RLIMIT_NOFILE, before)
    except (psutil.NoSuchProcess, OSError):
        return Effect("")
    return Effect(f"process {process.pid} could open no descriptor {limit}")


def _lowest_free_descriptor(pid: int) -> int:
    """The number that the process would get for the next file that it opens."""
    used = {int(one.name) for one in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in range(len(used) + 1) if number not in used)


async def start_a_twin(stack: ChaosStack, fault: Fault) -> Effect:
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
        return Effect("a twin stayed", f"the twin was still there after {TWIN_ENDS_WITHIN_S:g} s")
    words = None if code == MISCONFIGURED else f"the twin ended with {code}, not with {MISCONFIGURED}"
    return Effect(f"a twin ended with {code}", words)


INFLICT: Mapping[Kind, Inflict] = {
    Kind.KILL: kill,
    Kind.KILL_SEVERAL: kill,
    Kind.KILL_ALL: kill,
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
