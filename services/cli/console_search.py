"""Which console a command asks: the one that was named, else that of the local stack's own broker."""

from services.broker import topology
from services.cli.console import Console, ConsoleUnusable
from services.local import running
from services.local.folders import data_folder
from services.local.rabbitmq import console_of
from services.settings import ConsoleSettings, LocalSettings, load


def find_console(url: str) -> Console:
    """The console at `url`, or the local stack's where that is empty; raises `ConsoleUnusable`."""
    settings = load(ConsoleSettings)
    if url:
        return Console(url, settings.user, settings.password, settings.vhost)
    data = data_folder(load(LocalSettings))
    stack = running.find(data)
    if stack is None:
        raise ConsoleUnusable(f"no stack runs from {data}: start one with `make run`, or give --console")
    if stack.named("rabbitmq") is None:
        raise ConsoleUnusable("the stack here has no broker of its own now: wait until it is back, or give --console")
    try:
        found, password = console_of(data / "rabbitmq")
    except OSError as error:
        raise ConsoleUnusable(f"{error.filename} cannot be read ({error.strerror}): give --console") from None
    return Console(found, "operator", password, topology.VHOST, is_own=True)
