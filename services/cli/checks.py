"""The vocabulary of `evenload doctor`: what a check found, and what cures it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum

from services.cli.output import EXIT_FAILED, EXIT_MISCONFIGURED


class Finding(StrEnum):
    """How a check ended, from harmless to grave."""

    OK = "ok"
    NOTE = "note"
    """Nothing is wrong, but something is not there that one might look for."""
    PROBLEM = "problem"
    MISCONFIGURED = "misconfigured"
    """A start would be refused."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's table; a cure stands where there is something to cure."""

    check: str
    finding: Finding
    said: str
    cure: str = ""

    def as_json(self) -> dict[str, str]:
        """The line for programs."""
        return asdict(self)


def ok(check: str, said: str) -> Check:
    """All well."""
    return Check(check, Finding.OK, said)


def note(check: str, said: str, cure: str = "") -> Check:
    """Not there, and that may be meant."""
    return Check(check, Finding.NOTE, said, cure)


def problem(check: str, said: str, cure: str) -> Check:
    """Wrong now."""
    return Check(check, Finding.PROBLEM, said, cure)


def misconfigured(check: str, said: str, cure: str) -> Check:
    """Wrong as it is set up."""
    return Check(check, Finding.MISCONFIGURED, said, cure)


def with_cure(check: str, error: Exception) -> Check:
    """A refusal of ours, whose text is `cause: cure`, as a line."""
    said, _, cure = str(error).rpartition(": ")
    return misconfigured(check, said or cure, cure if said else "correct it")


def worst(checks: Iterable[Check]) -> Finding:
    """The gravest finding."""
    order = list(Finding)
    return max((one.finding for one in checks), key=order.index)


def exit_code(finding: Finding) -> int:
    """0 all well, 1 a problem, 2 misconfigured."""
    return {Finding.PROBLEM: EXIT_FAILED, Finding.MISCONFIGURED: EXIT_MISCONFIGURED}.get(finding, 0)
