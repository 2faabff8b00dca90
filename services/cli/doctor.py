"""`evenload doctor`: a table of checks, each with its cure; looks only, changes nothing."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Coroutine, Iterator

from pydantic_settings import SettingsConfigDict
from rich.table import Table
from rich.text import Text

from services.cli.checks import Check, Finding, exit_code, with_cure, worst
from services.cli.checks_broker import check_broker
from services.cli.checks_ledger import check_ledger, ledger_url, registered_substations
from services.cli.checks_services import check_services
from services.cli.checks_setup import (
    check_folders,
    check_grid,
    check_prometheus,
    check_python,
    check_rabbitmq,
    check_settings,
    check_surroundings,
)
from services.cli.checks_stack import check_gateway, check_port, check_processes
from services.cli.options import gateway_url
from services.cli.output import make_console, print_json, text
from services.errors import Misconfigured
from services.local import running
from services.local.folders import cache_dir, data_folder
from services.settings import PREFIX, LocalSettings, Settings, given, load

MARKS = {
    Finding.OK: ("✓", "green"),
    Finding.NOTE: ("–", "dim"),
    Finding.PROBLEM: ("✗", "red"),
    Finding.MISCONFIGURED: ("✗", "bold red"),
}
VERDICTS = {
    Finding.OK: "all well",
    Finding.NOTE: "all well",
    Finding.PROBLEM: "a problem was found",
    Finding.MISCONFIGURED: "misconfigured: a start would be refused",
}


class _Place(Settings):
    """Whether services run on several hosts: then nothing on this one is a local stack's."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    ledger_shared: bool = False


def run(url: str, console_url: str = "", *, as_json: bool) -> int:
    """Check everything; returns 0 all well, 1 a problem was found, 2 misconfigured."""
    with _no_logs():  # the broker's library would tell of a refusal, too
        checks = _checks(url, console_url)
    finding = worst(checks)
    if as_json:
        print_json({"verdict": finding, "checks": [one.as_json() for one in checks]})
    else:
        console = make_console()
        console.print(_table(checks))
        console.print(Text(VERDICTS[finding], MARKS[finding][1]))
    return exit_code(finding)


@contextlib.contextmanager
def _no_logs() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(before)


def _checks(url: str, console_url: str) -> list[Check]:
    checks = [check_python(), *check_surroundings(os.environ), *check_settings()]
    try:
        settings = load(LocalSettings)
        data, _ = data_folder(settings), cache_dir(settings)
        ledger, amqp_url = ledger_url(settings), given("EVENLOAD_AMQP_URL")
    except Misconfigured as error:
        told = {one.said for one in checks}
        fault = with_cure("settings", error)
        return checks if fault.said in told else [*checks, fault]
    stack = running.find(data)
    registered, is_shared = registered_substations(ledger), load(_Place).ledger_shared
    asked = asyncio.run(
        _ask(
            check_broker(stack, amqp_url, console_url, registered),
            check_gateway(gateway_url(url), registered, is_expected=is_shared or stack is not None),
            check_services(gateway_url(url), stack),
        )
    )
    checks += [check_grid(settings), *check_ledger(ledger)]
    if not is_shared:
        checks += [check_rabbitmq(settings, amqp_url), check_prometheus(settings), *check_folders(settings)]
        has_gateway = not url and any(one.check == "gateway" and one.finding is Finding.OK for one in asked)
        checks += [*check_processes(stack, data), check_port(stack, settings, has_gateway=has_gateway)]
    return checks + asked


async def _ask(*looks: Coroutine[None, None, list[Check]]) -> list[Check]:
    return [one for found in await asyncio.gather(*looks) for one in found]


def _table(checks: list[Check]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in checks:
        mark, style = MARKS[one.finding]
        table.add_row(Text(mark, style), text(one.check, "dim" if one.finding is Finding.NOTE else ""), text(one.said))
        if one.cure:
            table.add_row("", "", text(f"→ {one.cure}", "yellow" if one.finding is not Finding.NOTE else "dim"))
    return table
