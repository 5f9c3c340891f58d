"""`drawdown traffic`: the generator as a service of its own, against a system that runs elsewhere, as in containers."""

import asyncio
import time

import structlog

from drawdown.front_door import ApiToken, FrontDoor
from drawdown.local.subscriber import Deliveries
from drawdown.local.traffic import Traffic
from shared.runtime.health import answer, answering_health
from shared.runtime.settings import Settings

_LINE_SECONDS = 5.0
_LOOK_SECONDS = 0.2


async def generate(settings: Settings, *, rate: int) -> None:
    """Send `rate` spends a second to the API and the broker that the settings name, until cancelled.

    It is ready once the first has been sent.

    Raises:
        OSError: the health port is taken.
        httpx.HTTPError: the API does not answer.
        BadSettingError, CannotGoOnError: the broker does not let us in, or does not answer.

    """
    deliveries = Deliveries()
    say = structlog.get_logger().info
    url = f"http://{settings.http_client_host}:{settings.http_port}"
    async with FrontDoor({"api": url}, ApiToken(settings)) as door:
        traffic = Traffic(settings, door, deliveries, rate=rate, say=say)
        async with answering_health(settings, lambda: answer(lambda: (traffic.sent > 0, f"{traffic.sent} sent"))):
            await asyncio.gather(traffic.run(), deliveries.follow(settings), _report(traffic, deliveries))


async def _report(traffic: Traffic, deliveries: Deliveries) -> None:
    """Log the first pause when it comes, and how far things are now and then."""
    log = structlog.get_logger()
    line_at, first_pause_said = 0.0, False
    while True:
        if deliveries.first_pause is not None and not first_pause_said:
            first_pause_said = True
            log.info("the first pause", **_told(deliveries.first_pause))
        if time.monotonic() >= line_at:
            line_at = time.monotonic() + _LINE_SECONDS
            latest = _told(deliveries.latest[-1]) if deliveries.latest else {}
            log.info("spend flows", sent=traffic.sent, pauses=deliveries.pauses, resumes=deliveries.resumes, **latest)
        await asyncio.sleep(_LOOK_SECONDS)


def _told(signal: dict[str, object]) -> dict[str, object]:
    return {name: signal[name] for name in ("ad_account_id", "campaign_id", "change", "cause")}
