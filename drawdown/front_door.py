"""The front door: the HTTP API and the metrics, as any client of the system sees them."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from shared.runtime.settings import Settings

_TIMEOUT_SECONDS = 30.0
_ATTEMPTS = 10
_PAUSE_SECONDS = 1.0
_IDLE_POLL_SECONDS = 0.5


@dataclass
class Figures:
    """What /metrics of a service said: for each name the values by label set."""

    values: dict[str, list[tuple[dict[str, str], float]]] = field(default_factory=lambda: defaultdict(list))

    def sum(self, name: str, **labels: str) -> float:
        """The sum of a metric over all label sets that include `labels`; 0 where there is none."""
        return sum(value for found, value in self.values.get(name, ()) if labels.items() <= found.items())

    def sums_by(self, name: str, label: str) -> dict[str, float]:
        """The sums of a metric for each value of a label."""
        sums: dict[str, float] = defaultdict(float)
        for found, value in self.values.get(name, ()):
            sums[found.get(label, "")] += value
        return dict(sums)


class RequestRefusedError(Exception):
    """The API refused; the text is its message."""


class ApiToken(httpx.Auth):
    """Shows the API the token that the settings name, if any; a file is read each time, for tokens are replaced."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the token to a request. Raises OSError: its file is gone."""
        token, file = self._settings.api_token, self._settings.api_token_file
        if token is None and file is not None:
            token = file.read_text().strip()
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        yield request


class FrontDoor:
    """A client of the API and of the services' metrics."""

    def __init__(self, urls: Mapping[str, str], token: httpx.Auth | None = None) -> None:
        """Take the URLs of the services by name, `api` is the API's, and what the API is shown."""
        self._urls = dict(urls)
        self._token = token or httpx.Auth()  # Which shows nothing.
        self._client = httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def command(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Send a finance command; asked again, under the same id, until it is decided.

        Returns:
            its outcome, accepted or rejected; for what is not a command, the error's `code` and `message`.

        Raises:
            httpx.HTTPError: no answer after ten attempts.

        """
        return dict((await self._post("/v1/commands", command)).json())

    async def look_up(self, events: Sequence[Mapping[str, Any]], after: str | None) -> dict[str, Any]:
        """Ask what became of events: `POST /v1/events/lookup`; asked again while the API is busy or away.

        Raises:
            RequestRefusedError: the API will not say.
            httpx.HTTPError: no answer after ten attempts.

        """
        body = {"events": list(events)} if after is None else {"events": list(events), "after": after}
        response = await self._post("/v1/events/lookup", body)
        answer = dict(response.json())
        if not response.is_success:
            raise RequestRefusedError(str(answer.get("message", response.status_code)))
        return answer

    async def _post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """The answer, unless it is one that another attempt may better. Raises httpx.HTTPError after ten attempts."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response = await self._client.post(f"{self._urls['api']}{path}", json=dict(body), auth=self._token)
                if not (response.is_server_error or response.status_code == httpx.codes.TOO_MANY_REQUESTS):
                    return response
                response.raise_for_status()
            except httpx.HTTPError:
                if attempt == _ATTEMPTS:
                    raise
            await asyncio.sleep(_PAUSE_SECONDS)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def read(self, path: str) -> dict[str, Any] | None:
        """GET a path of the API; None when there is no such thing, or no answer just now."""
        try:
            response = await self._client.get(f"{self._urls['api']}{path}", auth=self._token)
        except httpx.HTTPError:
            return None
        return dict(response.json()) if response.status_code == httpx.codes.OK else None

    async def readiness(self) -> tuple[str, str]:
        """What the API says of itself and of the shards' writers: its status, and a sentence."""
        try:
            answer = (await self._client.get(f"{self._urls['api']}/readyz")).json()
            return str(answer["status"]), str(answer["detail"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return "not ready", "the API does not answer"

    async def backlog(self) -> tuple[int, int] | None:
        """Records that allocation has yet to take, and entries that the slowest follower has; None: unknown."""
        found = await asyncio.gather(*(self.figures(service) for service in self._urls if service != "api"))
        if not all(found):
            return None
        figures = [each for each in found if each is not None]
        records = sum(each.sum("drawdown_lag_records") for each in figures)
        entries = max((each.sum("drawdown_follower_lag_entries") for each in figures), default=0)
        return round(records), round(entries)

    async def wait_until_idle(self, seconds: float) -> bool:
        """Wait until nothing is left to do, seen twice; False when it is not so after `seconds`."""
        give_up_at = time.monotonic() + seconds
        seen = 0
        while seen < 2:
            if time.monotonic() > give_up_at:
                return False
            await asyncio.sleep(_IDLE_POLL_SECONDS)
            seen = seen + 1 if await self.backlog() == (0, 0) else 0
        return True

    async def figures(self, service: str) -> Figures | None:
        """The metrics of a service; None when it does not answer just now."""
        try:
            response = await self._client.get(f"{self._urls[service]}/metrics")
        except httpx.HTTPError:
            return None
        figures = Figures()
        for family in text_string_to_metric_families(response.text):
            for sample in family.samples:
                figures.values[sample.name].append((sample.labels, sample.value))
        return figures
