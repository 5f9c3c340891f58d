"""Moves the clock of a running system, by starting the services that have one again with another offset."""

import asyncio
import signal
import time

from drawdown.local.system import Service
from tests.servers import RunningSystem

# Services are started this long before the wanted moment: on a machine that is not too busy they live to see it.
LEAD_SECONDS = 5.0
# The others ask no clock: what they know of the time is in the ledger.
SERVICES_WITH_A_CLOCK = ("allocation", "api")


def offset_to(moment_us: int) -> float:
    """The offset with which a clock that starts now shows a moment."""
    return moment_us / 1_000_000 - time.time()


def shown_us(system: RunningSystem) -> int:
    """What the system's clock shows."""
    return round((time.time() + system.settings.clock_offset_seconds) * 1_000_000)


async def move_clock(system: RunningSystem, moment_us: int) -> None:
    """Start services again with a clock that shows a moment. They have missed what is between."""
    await asyncio.gather(*(system.kill_service(name, signal.SIGTERM) for name in SERVICES_WITH_A_CLOCK))
    offset = {"clock_offset_seconds": offset_to(moment_us)}
    system.settings = system.settings.model_copy(update=offset)
    for name in SERVICES_WITH_A_CLOCK:
        system.services[name] = Service(name, system.settings, {})
    await asyncio.gather(*(system.restart_service(name) for name in SERVICES_WITH_A_CLOCK))


async def live_to_see(system: RunningSystem, moment_us: int) -> None:
    """Returns when the clock shows a moment that the services have lived to see."""
    if moment_us - shown_us(system) > 2 * LEAD_SECONDS * 1_000_000:
        await move_clock(system, moment_us - round(LEAD_SECONDS * 1_000_000))
    await asyncio.sleep(max(0, moment_us - shown_us(system)) / 1_000_000 + 0.001)
