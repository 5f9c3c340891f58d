"""`drawdown quarantine list` and `drawdown quarantine replay`: through the HTTP API, like any other client."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx

from shared.runtime.settings import Settings

_TIMEOUT_SECONDS = 30.0
_EVERY_ADDRESS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - where a server listens, not where it is reached


async def list_quarantine(
    settings: Settings, say: Callable[[str], Any], *, reason: str | None = None, limit: int | None = None
) -> None:
    """Say one JSON object a quarantined record, as `GET /v1/quarantine` describes it.

    Args:
        settings: where the API is.
        say: takes each line.
        reason: only these; None: all.
        limit: how many at most; None: all.

    Raises:
        ValueError: the API refuses, with its message.
        ConnectionError: the API is away.

    """
    said = 0
    async for record in _records(settings, reason):
        if said == limit:
            return
        said += 1
        say(json.dumps(record, ensure_ascii=False))


async def replay(
    settings: Settings, say: Callable[[str], Any], *, ids: Sequence[str] = (), reason: str | None = None
) -> None:
    """Send records back to their shard, these or all of a reason that were not yet; say how many.

    Raises like `list_quarantine`, and ValueError when both or neither of `ids` and `reason` are given.
    """
    if bool(ids) == bool(reason):
        raise ValueError("name the records to replay, or their reason")
    answer = await _ask(settings, "POST", "/v1/quarantine/replay", json={"ids": ids} if ids else {"reason": reason})
    say(f"replayed {answer['replayed']}")


async def _records(settings: Settings, reason: str | None) -> AsyncIterator[dict[str, Any]]:
    query = {"reason": reason} if reason else {}
    while True:
        page = await _ask(settings, "GET", "/v1/quarantine", params=query)
        for record in page["entries"]:
            yield record
        if page["next"] is None:
            return
        query["after"] = page["next"]


async def _ask(settings: Settings, method: str, path: str, **options: Any) -> dict[str, Any]:
    host = "127.0.0.1" if settings.http_host in _EVERY_ADDRESS else settings.http_host
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.http_port}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
            response = await client.request(method, path, **options)
    except httpx.HTTPError as error:
        raise ConnectionError(f"the API at {url} does not answer: {error or type(error).__name__}") from error
    answer: dict[str, Any] = response.json()
    if response.is_error:
        raise ValueError(f"{answer['code']}: {answer['message']}")
    return answer
