"""The probe: a write that finds out whether a service could do its work, without doing any."""

from services.ledger import lease_statements, statements
from services.ledger.committer import Operation, Row, Transaction

_NEEDED = {
    "gateway": (statements.ACCEPT, statements.WITHDRAW),
    "balancer": (statements.ASSIGN,),
    "substation": (statements.CLAIM, statements.END, lease_statements.PROGRESS),
}
"""What each role is there for. Without a row they change nothing, but want their tables' locks and rights."""


def _probe(transaction: Transaction, rows: list[Row]) -> list[Row]:
    transaction.execute(statements.PROBE, probe=rows[-1]["probe"])
    for statement in _NEEDED.get(rows[-1]["role"], ()):
        transaction.execute(statement)
    return []


PROBE = Operation("probe", "probe", _probe)
"""Rows of something that changes with every call, and the role of the service that asks."""
