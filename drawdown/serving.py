"""Runs one service in this process until it is asked to stop, or fails."""

import asyncio
import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import NoReturn

import structlog
import uvloop

from shared.runtime.clock import Clock
from shared.runtime.errors import CannotGoOnError
from shared.runtime.logging import configure_logging
from shared.runtime.read_models import READ_MODELS
from shared.runtime.settings import BadSettingError, Settings, load_settings

SERVICES = ("allocation", *(model.name for model in READ_MODELS), "api")

# Container runtimes kill a process 10 s after they asked it to stop. Half a second earlier a hung process dumps its
# stacks and exits with 1; the database rolls back its open transactions.
STOP_SECONDS = 9.5

Service = Callable[[Settings], Awaitable[None]]


def serve(name: str) -> NoReturn:
    """Run the named service and exit like `run_until_signalled`."""
    run_until_signalled(name, import_module(f"services.{name}.service").run)


def run_until_signalled(name: str, service: Service) -> NoReturn:
    """Run a service and exit: with 0 after SIGTERM or SIGINT, with 1 if it failed, with 2 if a setting is wrong.

    A second signal ends it at once, with 1.
    """
    settings = load_settings()
    configure_logging(settings, name)
    Clock(settings).announce()
    log = structlog.get_logger()
    for what in switched_off(settings):
        log.warning("SECURITY IS OFF", what=what)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_signalled(service, settings))
    except BadSettingError as error:
        print(f"drawdown: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except CannotGoOnError as error:
        log.error(str(error))
        raise SystemExit(1) from None
    except Exception:
        log.exception("the service failed")
        raise SystemExit(1) from None
    log.info("the service has ended")
    raise SystemExit(0)


def switched_off(settings: Settings) -> list[str]:
    """Return a line for each part of security that is off."""
    lines = []
    if not settings.api_wants_tokens:
        lines.append("the API answers everybody without a token (DRAWDOWN_API_AUTHENTICATION)")
    if settings.kafka_security != "sasl_ssl":
        lacks = {"ssl": "passwords", "sasl_plaintext": "TLS", "plaintext": "TLS and passwords"}
        lines.append(f"Kafka without {lacks[settings.kafka_security]} (DRAWDOWN_KAFKA_SECURITY)")
    if settings.database_tls == "off":
        lines.append("PostgreSQL without TLS (DRAWDOWN_DATABASE_TLS)")
    return lines


async def _until_signalled(service: Service, settings: Settings) -> None:
    task = asyncio.ensure_future(service(settings))
    loop = asyncio.get_running_loop()
    asked = False

    def end() -> None:
        nonlocal asked
        if asked:
            os._exit(1)
        asked = True
        faulthandler.dump_traceback_later(STOP_SECONDS, exit=True)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    if not asked:
        raise RuntimeError("the service ended by itself")
