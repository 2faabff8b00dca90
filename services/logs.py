"""Structured logs: one event per line, JSON for machines, columns for a terminal."""

import logging
import re
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

LogFormat = Literal["auto", "json", "console"]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LONGEST_FIELD = 2_000


def _escape_and_cut(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Keep a hostile field from writing terminal codes or flooding the log."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            cut = value if len(value) <= _LONGEST_FIELD else value[:_LONGEST_FIELD] + "…"
            event[key] = _CONTROL.sub(lambda m: f"\\x{ord(m.group()):02x}", cut)
    return event


def configure_logs(service: str, instance: str, level: str, log_format: LogFormat) -> None:
    """Send every log line of this process, ours and the libraries', to standard output.

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
    handler = logging.StreamHandler(sys.stdout)
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


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger whose events are constant, snake_case and past tense; fields carry their units."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
