"""A client of the HTTP API and the metrics, with no more access than other clients have."""

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
    """The answer of a service's /metrics: for each metric, its values by label set."""

    values: dict[str, list[tuple[dict[str, str], float]]] = field(default_factory=lambda: defaultdict(list))

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over all label sets that include `labels`; 0 if there are none."""
        return sum(value for found, value in self.values.get(name, ()) if labels.items() <= found.items())

    def sums_by(self, name: str, label: str) -> dict[str, float]:
        """Return the sum of a metric for each value of a label."""
        sums: dict[str, float] = defaultdict(float)
        for found, value in self.values.get(name, ()):
            sums[found.get(label, "")] += value
        return dict(sums)


class RequestRefusedError(Exception):
    """The API refused a request. The text is the API's message."""


class ApiToken(httpx.Auth):
    """Sends the token from the settings, if any. A file is read for each request, because tokens are replaced."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the token to a request. Raises OSError if its file cannot be read."""
        token, file = self._settings.api_token, self._settings.api_token_file
        if token is None and file is not None:
            token = file.read_text().strip()
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        yield request


class ApiClient:
    """A client of the API and of the services' metrics."""

    def __init__(self, urls: Mapping[str, str], token: httpx.Auth | None = None) -> None:
        """Create a client.

        Args:
            urls: the URL of each service by name; `api` is the API.
            token: authenticates the requests to the API; None sends them without.

        """
        self._urls = dict(urls)
        self._token = token or httpx.Auth()
        self._client = httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def command(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Send a finance command, repeatedly and with the same id, until it is decided.

        Returns:
            its outcome, accepted or rejected; or the error's `code` and `message` if it is not a valid command.

        Raises:
            httpx.HTTPError: there was no answer after ten attempts.

        """
        return dict((await self._post("/v1/commands", command)).json())

    async def look_up(self, events: Sequence[Mapping[str, Any]], after: str | None) -> dict[str, Any]:
        """Ask for the outcomes of events, with `POST /v1/events/lookup`. Retries while the API is busy or unavailable.

        Args:
            events: event ids, or places in the topic, or both.
            after: the cursor of an earlier answer; later ones are compared with it.

        Raises:
            RequestRefusedError: the API refused the request.
            httpx.HTTPError: there was no answer after ten attempts.

        """
        body = {"events": list(events)} if after is None else {"events": list(events), "after": after}
        response = await self._post("/v1/events/lookup", body)
        answer = dict(response.json())
        if not response.is_success:
            raise RequestRefusedError(str(answer.get("message", response.status_code)))
        return answer

    async def _post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """Send a request until its answer is final. Raises httpx.HTTPError after ten attempts."""
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
        """Read a path of the API. Returns None if there is no such resource, or no answer at the moment."""
        try:
            response = await self._client.get(f"{self._urls['api']}{path}", auth=self._token)
        except httpx.HTTPError:
            return None
        return dict(response.json()) if response.status_code == httpx.codes.OK else None

    async def readiness(self) -> tuple[str, str]:
        """Return the API's status, and its sentence about itself and the shards' writers."""
        try:
            answer = (await self._client.get(f"{self._urls['api']}/readyz")).json()
            return str(answer["status"]), str(answer["detail"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return "not ready", "the API does not answer"

    async def backlog(self) -> tuple[int, int] | None:
        """Return allocation's lag in records, and the slowest follower's lag in entries; None if unknown."""
        found = await asyncio.gather(*(self.figures(service) for service in self._urls if service != "api"))
        if not all(found):
            return None
        figures = [each for each in found if each is not None]
        records = sum(each.sum("drawdown_lag_records") for each in figures)
        entries = max((each.sum("drawdown_follower_lag_entries") for each in figures), default=0)
        return round(records), round(entries)

    async def wait_until_idle(self, seconds: float) -> bool:
        """Wait until two looks in a row found nothing left to do. Returns False if that takes more than `seconds`."""
        give_up_at = time.monotonic() + seconds
        seen = 0
        while seen < 2:
            if time.monotonic() > give_up_at:
                return False
            await asyncio.sleep(_IDLE_POLL_SECONDS)
            seen = seen + 1 if await self.backlog() == (0, 0) else 0
        return True

    async def figures(self, service: str) -> Figures | None:
        """Read the metrics of a service. Returns None if it does not answer."""
        try:
            response = await self._client.get(f"{self._urls[service]}/metrics")
        except httpx.HTTPError:
            return None
        figures = Figures()
        for family in text_string_to_metric_families(response.text):
            for sample in family.samples:
                figures.values[sample.name].append((sample.labels, sample.value))
        return figures
