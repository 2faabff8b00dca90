"""Structured logs: one event per line, JSON for machines, columns for a terminal."""

import logging
import re
import sys
from collections.abc import Callable
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from services.log_limit import LogLimit, share_of

LogFormat = Literal["auto", "json", "console"]

KEPT = frozenset(
    {
        "promise_broken",
        "service_ready",
        "drain_started",
        "drain_cut_short",
        "service_drained",
        "service_left_before_it_was_ready",
        "service_misconfigured",
        "service_crashed",
    }
)
"""Evidence, and what happens once in a life: no line of these is left out."""
_PLACES = ("substation", "queue", "address", "connection", "port")
"""Fields that make a line another kind: a fault in one place must not hide the same one in another."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LONGEST_FIELD = 2_000
_LEVELS = logging.getLevelNamesMapping()


def _escape_and_cut(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Keep a hostile field from writing terminal codes or flooding the log."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            cut = value if len(value) <= _LONGEST_FIELD else value[:_LONGEST_FIELD] + "…"
            event[key] = _CONTROL.sub(lambda m: f"\\x{ord(m.group()):02x}", cut)
    return event


class _Lines(logging.StreamHandler[TextIO]):
    """Writes lines; one that cannot be written is lost, and so is the complaint that `logging` would write instead."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the library's name)
        """A full disk, or a reader that has gone, must not become a trace for each line."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def _limited(limit: LogLimit) -> Processor:
    """Leaves out lines of ours that come again and again; the next of the kind tells how many in `suppressed`."""

    def admit(logger: logging.Logger, level: str, event: EventDict) -> EventDict:
        if event["event"] in KEPT:
            return event
        error = event.get("exc_info")
        kind = (logger.name, event["event"], type(error), *(str(event.get(place)) for place in _PLACES))
        suppressed = limit.admit(kind, share_of(_LEVELS.get(level.upper(), logging.ERROR)))
        if suppressed is None:
            raise structlog.DropEvent
        return {**event, "suppressed": suppressed} if suppressed else event

    return admit


def _limited_foreign(limit: LogLimit) -> Callable[[logging.LogRecord], bool]:
    """The same for lines of libraries, which come as templates with arguments."""

    def admit(record: logging.LogRecord) -> bool:
        if isinstance(record.msg, dict):
            return True  # a line of ours, which has been looked at
        kind = (record.name, str(record.msg)[:80], record.exc_info and record.exc_info[0])
        suppressed = limit.admit(kind, share_of(record.levelno))
        if suppressed:
            record.msg = f"{record.msg} ({suppressed} lines like it were left out)"
        return suppressed is not None

    return admit


def configure_logs(service: str, instance: str, level: str, log_format: LogFormat) -> None:
    """Send the log lines of this process, ours and the libraries', to standard output, without floods (`LogLimit`).

    `auto` writes columns to a terminal and JSON anywhere else.
    """
    console = log_format == "console" or (log_format == "auto" and sys.stdout.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _escape_and_cut,
    ]
    renderer: Processor = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    limit = LogLimit()
    handler = _Lines(sys.stdout)
    handler.addFilter(_limited_foreign(limit))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    # aio-pika repeats every reconnect attempt, aiohttp every request: our own events say what matters.
    for loud, quiet_level in (
        ("aio_pika", "CRITICAL"),
        ("aiormq", "CRITICAL"),
        ("aiohttp.access", "WARNING"),
        ("aiohttp.server", "CRITICAL"),
    ):
        logging.getLogger(loud).setLevel(quiet_level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            _limited(limit),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    name_logs(service, instance)


def name_logs(service: str, instance: str) -> None:
    """Put these names on every line of this task, and of tasks that it starts from now on."""
    structlog.contextvars.bind_contextvars(service=service, instance=instance)


def _drop(_logger: WrappedLogger, _name: str, _event: EventDict) -> EventDict:
    raise structlog.DropEvent


# Until a service configures its logs, nothing is written: a command tells its outcome itself, perhaps as JSON.
structlog.configure(processors=[_drop])
logging.getLogger().addHandler(logging.NullHandler())


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger whose events are constant, snake_case and past tense; fields carry their units."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
