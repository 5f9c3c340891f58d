"""The clock of a running system. It is moved by a restart of the services that have a clock, with another offset."""

import asyncio
import signal
import time

from drawdown.local.system import Service
from tests.servers import RunningSystem

# Services are started this long before the wanted moment, so that they usually run when it comes.
LEAD_SECONDS = 5.0
# The others read no clock: they take the time from the ledger.
SERVICES_WITH_A_CLOCK = ("allocation", "api")


def offset_to(moment_us: int) -> float:
    """Return the offset with which a clock that starts now shows this moment."""
    return moment_us / 1_000_000 - time.time()


def shown_us(system: RunningSystem) -> int:
    """Return what the system's clock shows, in µs since the Unix epoch."""
    return round((time.time() + system.settings.clock_offset_seconds) * 1_000_000)


async def move_clock(system: RunningSystem, moment_us: int) -> None:
    """Restart the services with a clock that shows this moment. They skip the time in between."""
    await asyncio.gather(*(system.kill_service(name, signal.SIGTERM) for name in SERVICES_WITH_A_CLOCK))
    offset = {"clock_offset_seconds": offset_to(moment_us)}
    system.settings = system.settings.model_copy(update=offset)
    for name in SERVICES_WITH_A_CLOCK:
        system.services[name] = Service(name, system.settings, {})
    await asyncio.gather(*(system.restart_service(name) for name in SERVICES_WITH_A_CLOCK))


async def wait_for_moment(system: RunningSystem, moment_us: int) -> None:
    """Return when the clock shows this moment and the services have run through it."""
    if moment_us - shown_us(system) > 2 * LEAD_SECONDS * 1_000_000:
        await move_clock(system, moment_us - round(LEAD_SECONDS * 1_000_000))
    await asyncio.sleep(max(0, moment_us - shown_us(system)) / 1_000_000 + 0.001)
