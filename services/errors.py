"""Every error that Evenload raises on purpose, drawn as one tree.

EvenloadError
├── Misconfigured        a setting, file or neighbour makes starting pointless: exit code 2
├── InvalidMessage       a message that no retry can make readable: quarantined
├── Unroutable           a published message reached no queue
├── BrokerUnavailable    the broker did not confirm in time: the outcome is unknown
└── LedgerUnavailable    the ledger failed or did not answer in time: what was asked may or may not be done
    └── LedgerRefused    the database refuses this very row, and will refuse it again
"""


class EvenloadError(Exception):
    """The root of the tree; never raised itself."""


class Misconfigured(EvenloadError):
    """The process cannot do its work as it is set up; the text names the cause and the cure, in one line."""

    def __init__(self, text: str) -> None:
        # Names of variables, keys and files may hold anything.
        super().__init__("".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text))


class InvalidMessage(EvenloadError):
    """A message body that is no envelope of ours; the text says what is wrong with it."""


class Unroutable(EvenloadError):
    """The broker returned a mandatory message because no queue is bound to its key."""


class BrokerUnavailable(EvenloadError):
    """A broker call failed or ran past its deadline; a publish may still arrive later."""


class LedgerUnavailable(EvenloadError):
    """The ledger could not be reached, was locked, or failed; ask again, compare-and-set makes that safe."""


DROPPED = "no row"
"""The code of a refusal for which the database reports no error: a trigger has dropped the row."""


class LedgerRefused(LedgerUnavailable):
    """A rule of the database forbids this very row: nothing of it is written, and asking again is pointless.

    `code` is the database's own: PostgreSQL's SQLSTATE, or SQLite's name of the error; or `DROPPED`. The text holds no
    row.
    """

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code
