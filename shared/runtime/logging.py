"""Logging with structlog, on stderr: one JSON object a line, or readable lines on a terminal."""

import logging
import sys
import time
from typing import TYPE_CHECKING, TextIO

import structlog

from shared.runtime.settings import Settings

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

# Local variables are left out, because a password may be among them.
_TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
_REPEAT_SECONDS = 10.0
# Libraries that log too much at "info".
_VERBOSE = ("aiokafka", "asyncio", "faststream", "httpx", "httpcore", "uvicorn")


def configure_logging(settings: Settings, service: str, stream: TextIO | None = None) -> None:
    """Send structlog's events and the standard library's records to one stream, each with its service's name.

    Args:
        settings: `log_format` (`auto` means readable lines on a terminal, JSON elsewhere) and `log_level`.
        service: the value of every event's `service` field.
        stream: the stream to write to; None means stderr.

    """
    stream = stream or sys.stderr
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    readable = settings.log_format == "console" or (settings.log_format == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _names(service),
    ]
    if readable:
        plain = structlog.dev.plain_traceback
        renderers: list[Processor] = [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain)]
    else:
        renderers = [_TRACEBACKS, structlog.processors.JSONRenderer()]

    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.addFilter(_OnceInAWhile())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.captureWarnings(capture=True)
    for name in _VERBOSE:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


class _OnceInAWhile(logging.Filter):
    """Lets a line of a library pass once in ten seconds, because some repeat it without end while a broker is down."""

    def __init__(self) -> None:
        super().__init__()
        self._said_at: dict[tuple[str, str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind = (record.name, record.pathname, record.lineno)
        now = time.monotonic()
        if now - self._said_at.get(kind, -_REPEAT_SECONDS) < _REPEAT_SECONDS:
            return False
        self._said_at[kind] = now
        return True


def _names(service: str) -> "Processor":
    def add_service(_logger: "WrappedLogger", _method: str, event: "EventDict") -> "EventDict":
        event.setdefault("service", service)
        return event

    return add_service
