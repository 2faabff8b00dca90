"""Options with bounds, checked the same on the command line and on locust's page.

Not to be run by itself: `locust -f locustfiles` leaves files out whose names begin with an underscore.
"""

from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping

from locust.argument_parser import LocustArgumentParser

_checks: dict[str, Callable[[str], float]] = {}


def add_number(
    parser: LocustArgumentParser, name: str, *, default: float, at_least: float, at_most: float, about: str
) -> None:
    """Add `--name`, also read from `LOCUST_NAME`; a whole number where the default is one."""
    kind = type(default)

    def check(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            whole = "whole " if kind is int else ""
            raise ArgumentTypeError(f"{text!r} is no {whole}number") from None
        if not at_least <= value <= at_most:
            raise ArgumentTypeError(f"{text} does not lie between {at_least:,} and {at_most:,}")
        return value

    destination = name.replace("-", "_")
    _checks[destination] = check
    parser.add_argument(
        f"--{name}", type=check, default=default, metavar="NUMBER", env_var=f"LOCUST_{destination.upper()}", help=about
    )


def checked_numbers(texts: Mapping[str, str]) -> dict[str, float]:
    """Those of the texts that are options of ours, as numbers; raises `ValueError` that names the option."""
    values = {}
    for name, check in _checks.items():
        if name in texts:
            try:
                values[name] = check(texts[name])
            except ArgumentTypeError as fault:
                raise ValueError(f"{name.replace('_', ' ')}: {fault}") from None
    return values
