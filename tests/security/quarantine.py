"""The door of quarantine: unreadable records are stored, shown and sent back, and must stay small throughout."""

import asyncio
import base64
import json
import time
from collections.abc import Sequence
from typing import Any

import httpx

from shared.runtime.kafka import SPEND_EVENTS
from tests.security.check import Check, require
from tests.security.records import Record, batch
from tests.security.target import Target
from tests.security.tenants import Tenant, Watched, becomes_true, open_tenant, quarantined, still_charges
from tests.security.wire import wire

_RECORDS = 20
_ROUNDS = 13
_MOST_REPLAYS = 10
_PAGE_BYTES = 1_600_000  # A mebibyte in base64, with its field names.
_UNREAD = 150
_MIB = 2**20


def _stray(tenant: Tenant, padding: int) -> Record:
    """Return a spend of an account that does not exist, padded to this length."""
    event = {**tenant.spend(), "ad_account_id": "nobody", "padding": "x" * padding}
    return tenant.key, json.dumps(event).encode(), ()


async def _aside(target: Target, tenant: Tenant, records: Sequence[Record], each: int = 10) -> list[str]:
    """Send these records as ad delivery, and wait until all are in quarantine; return their ids."""
    offsets: list[int] = []
    sent: set[int] = set()
    async with wire(target, "ad-delivery") as kafka:
        for begin in range(0, len(records), each):
            code, offset = await kafka.send(SPEND_EVENTS, tenant.shard, batch(records[begin : begin + each], "gzip"))
            require(code == 0, f"Kafka refuses a batch: {code}")
            offsets.append(offset)
            sent |= set(range(offset, offset + len(records[begin : begin + each])))

    async def are_there() -> bool:
        found = await quarantined(target, SPEND_EVENTS, tenant.shard, offsets[0], offsets[-1] + each)
        return sent <= {row["offset"] for row in found}

    require(await becomes_true(are_there, 30), "they do not come into quarantine")
    return [f"{tenant.shard}-{sequence}" for (sequence,) in await target.rows(_sequences(tenant, sent))]


def _sequences(tenant: Tenant, offsets: set[int]) -> str:
    return (
        f"SELECT sequence FROM ledger.quarantine WHERE shard = {tenant.shard} AND topic = '{SPEND_EVENTS}'"
        f' AND partition = {tenant.shard} AND "offset" IN ({", ".join(map(str, offsets))})'
    )


async def _count(target: Target, tenant: Tenant) -> tuple[int, int]:
    """Return the number of the tenant's rows in quarantine, and their bytes."""
    (row,) = await target.rows(
        "SELECT count(*), coalesce(sum(octet_length(raw)), 0) FROM ledger.quarantine"
        f" WHERE business_center_id = '{tenant.id}'"
    )
    return int(row[0]), int(row[1])


async def _ids(target: Target, token: str) -> list[str]:
    """Return all ids that the token's holder sees, page by page."""
    ids, after = [], None
    while True:
        params: dict[str, Any] = {"limit": 1000, **({"after": after} if after else {})}
        page = (await target.ask("GET", "/v1/quarantine", token, params=params)).json()
        ids += [entry["id"] for entry in page["entries"]]
        after = page["next"]
        if not after:
            return ids


async def replays(target: Target) -> str:
    """As a finance manager, send back all records that cannot be charged, repeatedly."""
    tenant = await open_tenant(target)
    token = target.token("finance_manager", [tenant.id])
    await _aside(target, tenant, [_stray(tenant, 10_000) for _ in range(_RECORDS)])
    rows, kept = await _count(target, tenant)
    async with Watched(target, "allocation"):
        for _ in range(_ROUNDS):
            await _send_back(target, token, await _ids(target, token))
            await _until_none_waits(target)
        charged = await still_charges(target, tenant)
    rows_after, kept_after = await _count(target, tenant)
    require(rows_after <= rows * (1 + _MOST_REPLAYS), f"{rows} rows became {rows_after} in {_ROUNDS} rounds")
    require(kept_after <= 2 * kept, f"{kept:,} bytes became {kept_after:,} in {_ROUNDS} rounds")
    return f"{_ROUNDS} rounds: {rows} rows became {rows_after}, {kept:,} bytes {kept_after:,}; {charged}"


async def _send_back(target: Target, token: str, ids: list[str]) -> httpx.Response:
    return await target.ask("POST", "/v1/quarantine/replay", token, json={"ids": ids[:1_000]})


async def _until_none_waits(target: Target) -> None:
    async def none_waits() -> bool:
        (row,) = await target.rows("SELECT coalesce(sum(records), 0) FROM ledger.forwarded_waiting")
        return int(row[0]) == 0

    require(await becomes_true(none_waits, 30), "what was sent back still waits after 30 s")


async def twice(target: Target) -> str:
    """Send the same record back sixteen times at once."""
    tenant = await open_tenant(target)
    token = target.token("finance_manager", [tenant.id])
    (id,) = await _aside(target, tenant, [_stray(tenant, 100)])
    answers = await asyncio.gather(*(target.ask("POST", f"/v1/quarantine/{id}/replay", token) for _ in range(16)))
    codes = sorted(answer.status_code for answer in answers)
    await _until_none_waits(target)
    rows, _ = await _count(target, tenant)
    # A record that has failed again meanwhile may be sent back again, ten times in all; after that it needs force.
    done = [answer for answer in answers if answer.is_success]
    require(set(codes) <= {200, 202, 409, 422} and codes.count(409) + codes.count(422) > 0, codes)
    require(422 not in codes or len(done) == _MOST_REPLAYS, codes)
    require(rows <= 1 + len(done), f"{rows} rows after {len(done)} replays")
    return f"{len(done)} done, {codes.count(409)} refused as a conflict, {codes.count(422)} as failed too often"


async def unchanging(target: Target) -> str:
    """As a finance manager, and as an admin without force, send back records that always fail."""
    tenant = await open_tenant(target)
    manager, admin = target.token("finance_manager", [tenant.id]), target.token("admin", [tenant.id])
    wrong = {**tenant.spend(), "amount": "-1"}
    records: list[Record] = [(tenant.key, json.dumps(wrong).encode(), ()), _stray(tenant, 100_000)]
    ids = await _aside(target, tenant, records)
    came = []
    for who, token, fields in (
        ("a finance manager", manager, {}),
        ("a finance manager with force", manager, {"force": True}),
        ("an admin of one Business Center with force", admin, {"force": True}),
        ("an admin of all without force", target.token(), {}),
    ):
        for id in ids:
            answer = await target.ask("POST", "/v1/quarantine/replay", token, json={"ids": [id], **fields})
            came += [] if 400 <= answer.status_code < 500 else [f"{who}: {answer.status_code} {answer.text[:100]}"]
    require(not came, came)
    return "refused to all without force, and with it to all but an admin of everything"


async def kept_short(target: Target) -> str:
    """Send records with a too large value, key or headers, and check how much is stored."""
    tenant = await open_tenant(target)
    odd: dict[str, Record] = {
        "a value of 900 KB": _stray(tenant, 900_000),
        "a key of 1 MB": (b"k" * 1_000_000, json.dumps(tenant.spend()).encode(), ()),
        "50,000 headers": (tenant.key, json.dumps(tenant.spend()).encode(), [(b"h", b"")] * 50_000),
    }
    came = []
    async with Watched(target, "allocation"):
        for what, record in odd.items():
            async with wire(target, "ad-delivery") as kafka:
                code, offset = await kafka.send(SPEND_EVENTS, tenant.shard, batch([record]))
            require(code == 0, f"{what}: Kafka refuses it: {code}")
            charged = await still_charges(target, tenant)
            for row in await quarantined(target, SPEND_EVENTS, tenant.shard, offset):
                came += [f"{what}: {row}"] if row["bytes"] > 8_192 or row["reason"] != "too_large" else []
    require(not came, came)
    return f"8 KiB at most are kept of each; {charged}"


async def pages(target: Target) -> str:
    """Read the longest pages of the longest records."""
    _, token = await _tenant_with_long_records(target)
    answer = await target.ask("GET", "/v1/quarantine?limit=1000", token)
    size = len(answer.content)
    entries = answer.json()["entries"]
    require(size <= _PAGE_BYTES, f"a page has {size:,} bytes")
    require(len(await _ids(target, token)) >= 2 * _RECORDS, "the pages together do not show all")
    one = await target.ask("GET", f"/v1/quarantine/{entries[0]['id']}", token)
    require(one.status_code == httpx.codes.OK, f"one record by its id: {one.status_code}")
    require(len(base64.b64decode(one.json()["raw"])) > 50_000, "its bytes are not all there")
    other = await target.ask("GET", f"/v1/quarantine/{entries[0]['id']}", target.token(centers=["nobody"]))
    require(other.status_code == httpx.codes.NOT_FOUND, f"another reads it: {other.status_code}")
    return f"a page of {len(entries)} records has {size:,} bytes"


async def _tenant_with_long_records(target: Target) -> tuple[Tenant, str]:
    tenant = await open_tenant(target)
    await _aside(target, tenant, [_stray(tenant, 60_000) for _ in range(2 * _RECORDS)])
    return tenant, target.token("finance_analyst", [tenant.id])


async def unread_pages(target: Target) -> str:
    """Request long pages over many connections, and read none of the answers."""
    tenant, _ = await _tenant_with_long_records(target)
    before, _ = await target.memory_mib("api")
    writers = []
    most = before
    async with Watched(target, "api"):
        try:
            for _ in range(_UNREAD):
                token = target.token("finance_analyst", [tenant.id])
                _reader, writer = await asyncio.open_connection("127.0.0.1", target.http_port, limit=1024)
                writers.append(writer)
                head = f"GET /v1/quarantine?limit=1000 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}"
                writer.write(f"{head}\r\n\r\n".encode())
            give_up_at = time.monotonic() + 8
            while time.monotonic() < give_up_at:
                most = max(most, (await target.memory_mib("api"))[0])
                answer = await target.ask("GET", f"/v1/business-centers/{tenant.id}", target.token())
                require(answer.status_code == httpx.codes.OK, f"another is answered {answer.status_code}")
        finally:
            for writer in writers:
                writer.close()
    require(most < before + 300, f"the API grew from {before:.0f} to {most:.0f} MiB")
    return f"{_UNREAD} unread pages: the API went from {before:.0f} to {most:.0f} MiB, others were answered"


CHECKS = (
    Check("quarantine", "replays", f"the same {_RECORDS} records sent back {_ROUNDS} times", replays, is_quick=False),
    Check("quarantine", "twice", "one record sent back sixteen times at once", twice),
    Check("quarantine", "unchanging", "sending back what is too large or invalid", unchanging),
    Check("quarantine", "short", "a value of 900 KB, a key of 1 MB, 50,000 headers", kept_short),
    Check("quarantine", "pages", "long pages", pages),
    Check("quarantine", "unread", f"{_UNREAD} long pages that nobody reads", unread_pages, is_quick=False),
)
