"""`drawdown quarantine list` and `replay`, through the HTTP API."""

import json
import sys
from typing import Any

import httpx

from drawdown.api_client import ApiToken, RequestRefusedError
from shared.rules.vocabulary import QUARANTINE_REASONS
from shared.runtime.settings import Settings

_PAGE = 1000
_PORTION = 10_000
_TIMEOUT_SECONDS = 60.0


async def list_records(settings: Settings, reason: str | None) -> int:
    """Print every quarantined record as a line of JSON, in the order of shard and sequence; return the exit code.

    Args:
        settings: the address of the API, and the token.
        reason: list only the records with this reason; None lists all.

    Raises:
        RequestRefusedError: the reason is not in the form of a reason, or the token is refused.
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
    return f"nothing is in quarantine with the reason {reason}{known}"


async def replay_records(settings: Settings, ids: list[str], reason: str | None, *, force: bool = False) -> int:
    """Send records back to their shard, to be decided again; return the exit code.

    Records that still wait for their shard, or were sent back and have not failed since, are left out. So are those of
    the reason that have failed too often or are not stored as a whole.

    Args:
        settings: the address of the API, and the token.
        ids: the ids of the records; empty means all with the reason.
        reason: all records with this reason that were not replayed yet.
        force: also records that will certainly fail again, or have failed too often.

    Raises:
        RequestRefusedError: an id or the reason is unknown, the token may not send them, or a record of these ids has
            failed too often; then none was sent. Or too many records wait; then those that were printed as sent back
            are sent.
        httpx.HTTPError: the API does not answer.

    """
    body: dict[str, Any] = {"ids": ids} if ids else {"reason": reason, "limit": _PORTION}
    body["force"] = force
    replayed = left_out = not_whole = failed_too_often = 0
    async with _client(settings) as client:
        while True:
            answer = _answer(await client.post("/v1/quarantine/replay", json=body))
            replayed += answer["replayed"]
            left_out += answer.get("waiting", 0)
            not_whole += answer.get("not_whole", 0)
            failed_too_often += answer.get("failed_too_often", 0)
            if "next" not in answer:
                break
            print(f"{replayed:,} sent back so far", file=sys.stderr)
            body["after"] = answer["next"]
    print(f"{replayed:,} sent back")
    if left_out:
        print(f"{left_out:,} left out: they wait for their shard, or were sent back and have not failed since then")
    if not_whole:
        print(
            f"{not_whole:,} left out: only a part of them is stored; Kafka may still have them at the offsets that "
            "`drawdown quarantine list` prints"
        )
    if failed_too_often:
        print(f"{failed_too_often:,} left out: they were sent back too often and failed each time; see their `detail`")
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
