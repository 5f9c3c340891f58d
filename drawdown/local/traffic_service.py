"""`drawdown traffic`: the generator as a separate service, for a system that runs elsewhere, as in containers."""

import asyncio
import time

import structlog

from drawdown.api_client import ApiClient, ApiToken
from drawdown.local.subscriber import Subscriber
from drawdown.local.traffic import Traffic
from shared.runtime.health import answer, answering_health
from shared.runtime.settings import Settings

_LINE_SECONDS = 5.0
_LOOK_SECONDS = 0.2


async def generate(settings: Settings, *, rate: int) -> None:
    """Send `rate` spends a second to the system that the settings name, until cancelled.

    Its /readyz is ready once the first spend has been sent.

    Raises:
        OSError: the health port is taken.
        httpx.HTTPError: the API does not answer.
        BadSettingError, CannotGoOnError: the broker refuses this user, or does not answer.

    """
    subscriber = Subscriber()
    say = structlog.get_logger().info
    url = f"http://{settings.http_client_host}:{settings.http_port}"
    async with ApiClient({"api": url}, ApiToken(settings)) as client:
        traffic = Traffic(settings, client, subscriber, rate=rate, say=say)
        async with answering_health(settings, lambda: answer(lambda: (traffic.sent > 0, f"{traffic.sent} sent"))):
            await asyncio.gather(traffic.run(), subscriber.follow(settings), _report(traffic, subscriber))


async def _report(traffic: Traffic, subscriber: Subscriber) -> None:
    """Log the first pause when it comes, and progress every five seconds."""
    log = structlog.get_logger()
    line_at, first_pause_said = 0.0, False
    while True:
        if subscriber.first_pause is not None and not first_pause_said:
            first_pause_said = True
            log.info("the first pause", **_told(subscriber.first_pause))
        if time.monotonic() >= line_at:
            line_at = time.monotonic() + _LINE_SECONDS
            latest = _told(subscriber.latest[-1]) if subscriber.latest else {}
            log.info("spend flows", sent=traffic.sent, pauses=subscriber.pauses, resumes=subscriber.resumes, **latest)
        await asyncio.sleep(_LOOK_SECONDS)


def _told(signal: dict[str, object]) -> dict[str, object]:
    return {name: signal[name] for name in ("ad_account_id", "campaign_id", "change", "cause")}
