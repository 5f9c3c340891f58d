"""Logs: structlog, one JSON object a line, or readable lines on a terminal. Always on stderr."""

import logging
import sys
from typing import TYPE_CHECKING

import structlog

from shared.runtime.settings import Settings

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

# Libraries that talk a lot at "info".
_TALKATIVE = ("aiokafka", "asyncio", "faststream", "httpx", "httpcore", "uvicorn.access")


def configure_logging(settings: Settings, service: str) -> None:
    """Send structlog's events and the standard library's records to stderr, each naming its service.

    Args:
        settings: `log_format` (`auto` is readable lines on a terminal, JSON elsewhere) and `log_level`.
        service: what the events carry as `service`.

    """
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    readable = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _names(service),
    ]
    if readable:
        renderers: list[Processor] = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    else:
        renderers = [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]

    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.captureWarnings(capture=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def _names(service: str) -> "Processor":
    def add_service(_logger: "WrappedLogger", _method: str, event: "EventDict") -> "EventDict":
        event.setdefault("service", service)
        return event

    return add_service
