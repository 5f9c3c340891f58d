"""How long one subject waits while another does its worst."""

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial

from tests.security.check import BreachError, Check, require
from tests.security.crowd import crowded
from tests.security.target import Target
from tests.security.tenants import Fields, Tenant, a_command, give, open_tenant

_CONNECTIONS = 40
# More than one address may have, because the measuring client has the same address.
_CROWD = 330
_TRIES = 3
_ROUNDS = 5
_SAMPLES = 120
_PAUSE_SECONDS = 0.01
_FACTOR = 3.0
# Latencies below this are treated as equal, because they depend on what else the machine does.
_FLOOR_MS = 15.0
_DEAR = (
    "/v1/ledger?limit=1000",
    "/v1/quarantine?limit=1000",
    "/v1/business-centers?limit=1000",
    "/v1/business-centers/{id}/series?from=2026-01-01&to=2026-12-31",
    "/v1/ledger?business_center_id={id}&limit=1000",
    "/openapi.json",
    "/docs/swagger-ui-bundle.js",
)


async def _reads_ms(target: Target, tenant: Tenant, token: str) -> list[float]:
    """Return the latencies in milliseconds of one subject's reads, one after the other."""
    took = []
    headers = {"Authorization": f"Bearer {token}"}
    async with target.client() as client:
        for _ in range(_SAMPLES):
            began = time.perf_counter()
            answer = await client.get(f"/v1/business-centers/{tenant.id}", headers=headers)
            took.append(1000 * (time.perf_counter() - began))
            require(answer.status_code == 200, f"the quiet one is answered {answer.status_code}")
            await asyncio.sleep(_PAUSE_SECONDS)
    return took


async def _compared(
    target: Target,
    tokens: Sequence[str],
    paths: Sequence[str],
    tenant: Tenant,
    given: Sequence[Fields] = (),
    sent: Sequence[str] = (),
) -> str:
    """Compare until it holds, three times at most, because one try proves little on a busy machine."""
    came = []
    for _ in range(_TRIES):
        crowd = partial(crowded, target, _CONNECTIONS, tokens=tokens, paths=paths, commands=given, sent=sent)
        ratio, shown = await _with_and_without(target, crowd, tenant)
        came.append(shown)
        if ratio < _FACTOR:
            return "; before: ".join(reversed(came))
    raise BreachError("; ".join(came))


async def _with_and_without(
    target: Target, crowd: Callable[[], AbstractAsyncContextManager[None]], tenant: Tenant
) -> tuple[float, str]:
    """Return the ratio of the 99th percentiles, and the figures. Measures by turns, so that conditions are equal."""
    token = target.token(centers=[tenant.id])
    await _reads_ms(target, tenant, token)
    quiet, loud = [], []
    for _ in range(_ROUNDS):
        quiet.append(await _reads_ms(target, tenant, token))
        async with crowd():
            await asyncio.sleep(1)
            loud.append(await _reads_ms(target, tenant, token))
    shown = {share: (_usual(quiet, share), _usual(loud, share)) for share in (0.5, 0.99)}
    ratio = shown[0.99][1] / max(shown[0.99][0], _FLOOR_MS)
    came = ", ".join(
        f"p{100 * share:.0f} {before:.1f} → {with_it:.1f} ms" for share, (before, with_it) in shown.items()
    )
    return ratio, f"{came}, ratio {ratio:.1f} above a floor of {_FLOOR_MS:.0f} ms"


def _usual(rounds: Sequence[Sequence[float]], share: float) -> float:
    """Return the median of the rounds' percentiles, so that one round on a busy machine does not decide."""
    return statistics.median(sorted(took)[int(share * len(took))] for took in rounds)


async def dear_reads(target: Target) -> str:
    """As a subject with all rights, send expensive reads over many connections at once."""
    tenant = await open_tenant(target)
    return await _compared(target, [target.token()], [path.format(id=tenant.id) for path in _DEAR], tenant)


async def long_pages(target: Target) -> str:
    """As a subject with all rights, read only the longest pages over many connections at once."""
    tenant = await open_tenant(target)
    return await _compared(target, [target.token()], ["/v1/ledger?limit=1000"], tenant)


async def open_pages(target: Target) -> str:
    """Without a token, read the open pages."""
    tenant = await open_tenant(target)
    return await _compared(
        target, [""], ["/docs/swagger-ui-bundle.js", "/openapi.json", "/asyncapi.json", "/nothing"], tenant
    )


async def answered_at_once(target: Target) -> str:
    """As one subject, read paths that do not exist, and use unknown methods."""
    tenant = await open_tenant(target)
    return await _compared(target, [target.token()], ["/v1/nothing", "/v1/commands"], tenant)


async def refused(target: Target) -> str:
    """Send requests with an invalid token."""
    tenant = await open_tenant(target)
    return await _compared(target, [target.token() + "x"], ["/v1/ledger"], tenant)


async def bodies(target: Target) -> str:
    """As one subject, send bodies that take long to read: in small chunks, of the largest size, and larger."""
    tenant = await open_tenant(target)
    head = f"POST /v1/commands HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {target.token()}\r\n"
    head += "Content-Type: application/json\r\n"
    in_chunks = f"{head}Transfer-Encoding: chunked\r\n\r\n"
    sent = [
        in_chunks + "1\r\n[\r\n" * 60_000,
        in_chunks + "5\r\n[1,1,\r\n" * 13_000,
        f"{head}Content-Length: 65001\r\nConnection: close\r\n\r\n[" + "1," * 32_500,
        f"{head}Content-Length: 1000000\r\n\r\n" + "[" * 1_000_000,
    ]
    return await _compared(target, [], [], tenant, sent=sent)


async def no_requests(target: Target) -> str:
    """Without a token, send bytes that are not HTTP, too long heads, an unwanted body, and many probes at once."""
    tenant = await open_tenant(target)
    sent = [
        "\0" * 300_000,
        "GET / HTTP/1.1\r\n" + "a: b\r\n" * 2_700,
        "POST /v1/commands HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + "1\r\n[\r\n" * 60_000,
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2_000,
    ]
    return await _compared(target, [], [], tenant, sent=sent)


async def crowd(target: Target) -> str:
    """As one subject, use more connections than an address may have, from the address of others."""
    tenant = await open_tenant(target)
    token = target.token(centers=[tenant.id])
    quiet = await _reads_ms(target, tenant, token)
    async with crowded(target, _CROWD, tokens=[target.token()], paths=["/v1/ledger"]):
        await asyncio.sleep(1)
        loud = await _reads_ms(target, tenant, token)
    return f"all are answered, in {statistics.median(quiet):.1f} → {statistics.median(loud):.1f} ms (p50)"


async def many_commands(target: Target) -> str:
    """As one subject, send valid commands, and commands that are expensive to refuse."""
    tenant, other = await open_tenant(target), await open_tenant(target)
    long = [f"{'x' * 20}-{number}" for number in range(900)]
    given = [
        a_command(other.id, "deposit_cash", amount="0.000001"),
        a_command(
            other.id, "grant_voucher", voucher_id="v", amount="1", ad_account_id=other.account, campaign_ids=long
        ),
        a_command(other.id, "set_budget", ad_account_id="nobody", mode="daily", amount="1"),
    ]
    return await _compared(target, [target.token()], [], tenant, given)


async def commands(target: Target) -> str:
    """As one subject, send the most expensive requests, and measure how long another's commands take."""
    tenant, other = await open_tenant(target), await open_tenant(target)
    token = target.token(centers=[tenant.id])

    async def took_ms() -> list[float]:
        took = []
        for _ in range(30):
            began = time.perf_counter()
            answer = await give(target, token, a_command(tenant.id, "deposit_cash", amount="1"))
            took.append(1000 * (time.perf_counter() - began))
            require(answer.status_code == 200, f"a deposit is answered {answer.status_code}")
        return sorted(took)

    await took_ms()
    quiet = await took_ms()
    async with crowded(
        target, _CONNECTIONS, tokens=[target.token()], paths=[path.format(id=other.id) for path in _DEAR]
    ):
        await asyncio.sleep(1)
        loud = await took_ms()
    came = (
        f"the median of a deposit {quiet[15]:.0f} → {loud[15]:.0f} ms, the longest {quiet[-1]:.0f} → {loud[-1]:.0f} ms"
    )
    require(loud[15] < _FACTOR * max(quiet[15], 2 * _FLOOR_MS), came)
    return came


CHECKS = (
    Check("latency", "reads", f"{_CONNECTIONS} dear requests at once of one subject", dear_reads, is_quick=False),
    Check("latency", "ledger", f"{_CONNECTIONS} long pages at once of one subject", long_pages, is_quick=False),
    Check("latency", "pages", f"{_CONNECTIONS} requests at once of nobody", open_pages, is_quick=False),
    Check("latency", "nothing", f"{_CONNECTIONS} requests at once for nothing", answered_at_once, is_quick=False),
    Check("latency", "refused", f"{_CONNECTIONS} requests at once with a bad token", refused, is_quick=False),
    Check("latency", "bodies", f"{_CONNECTIONS} long bodies at once of one subject", bodies, is_quick=False),
    Check("latency", "bytes", f"{_CONNECTIONS} times what is no request at once", no_requests, is_quick=False),
    Check("latency", "crowd", f"{_CROWD} requests at once of one subject", crowd, is_quick=False),
    Check("latency", "given", f"{_CONNECTIONS} commands at once of one subject", many_commands, is_quick=False),
    Check("latency", "commands", "dear requests, and another's commands", commands, is_quick=False),
)
