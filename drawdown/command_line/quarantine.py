"""Lists quarantined records and sends them back, through the HTTP API."""

import json
import sys
from typing import Any

import httpx

from drawdown.front_door import ApiToken, RequestRefusedError
from shared.rules.vocabulary import QUARANTINE_REASONS
from shared.runtime.settings import Settings

_PAGE = 1000
_PORTION = 10_000
_TIMEOUT_SECONDS = 60.0


async def list_records(settings: Settings, reason: str | None) -> int:
    """Print every quarantined record as a line of JSON, by shard and sequence; return the exit code.

    Raises:
        RequestRefusedError: that can be no reason.
        httpx.HTTPError: the API does not answer.

    """
    async with _client(settings) as client:
        after: str | None = None
        listed = 0
        while True:
            asked = {"limit": _PAGE, "reason": reason, "after": after}
            query = {name: value for name, value in asked.items() if value is not None}
            page = _answer(await client.get("/v1/quarantine", params=query))
            for record in page["entries"]:
                sys.stdout.write(json.dumps(record) + "\n")
            listed += len(page["entries"])
            after = page["next"]
            if after is None:
                if not listed:
                    print(_nothing(reason), file=sys.stderr)
                return 0


def _nothing(reason: str | None) -> str:
    if reason is None:
        return "nothing is in quarantine"
    known = "" if reason in QUARANTINE_REASONS else f": this version knows {', '.join(QUARANTINE_REASONS)}"
    return f"nothing is in quarantine for the reason {reason}{known}"


async def replay_records(settings: Settings, ids: list[str], reason: str | None, *, force: bool = False) -> int:
    """Send records back to their shard: these, or all of a reason that were not yet; return the exit code.

    `force`: also where the reason cannot have changed. Records that wait for their shard, or were sent back and have
    not failed since, are left out.

    Raises:
        RequestRefusedError: one of the ids, or the reason, is unknown, or the records may not be sent: then none is. Or
            too many wait: what was said to be sent is.
        httpx.HTTPError: the API does not answer.

    """
    body: dict[str, Any] = {"ids": ids} if ids else {"reason": reason, "limit": _PORTION}
    body["force"] = force
    replayed = left_out = not_whole = 0
    async with _client(settings) as client:
        while True:
            answer = _answer(await client.post("/v1/quarantine/replay", json=body))
            replayed += answer["replayed"]
            left_out += answer.get("waiting", 0)
            not_whole += answer.get("not_whole", 0)
            if "next" not in answer:
                break
            print(f"{replayed:,} sent back so far", file=sys.stderr)
            body["after"] = answer["next"]
    print(f"{replayed:,} sent back")
    if left_out:
        print(f"{left_out:,} left out: they wait for their shard, or were sent back and have not failed since")
    if not_whole:
        print(
            f"{not_whole:,} left out: they are not kept whole; each names its topic and offset, Kafka may have it still"
        )
    return 0


def _client(settings: Settings) -> httpx.AsyncClient:
    url = f"http://{settings.http_client_host}:{settings.http_port}"
    return httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_SECONDS, trust_env=False, auth=ApiToken(settings))


def _answer(response: httpx.Response) -> dict[str, Any]:
    if response.is_success:
        return dict(response.json())
    try:
        message = response.json()["message"]
    except (ValueError, KeyError):
        message = f"the API answered {response.status_code}"
    raise RequestRefusedError(message)
