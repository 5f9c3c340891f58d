"""The door of commands: their claimed actors, the way they came, and two that compete."""

import asyncio
import base64
import hashlib
import json
import uuid
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from shared.runtime.kafka import FINANCE_COMMANDS, SPEND_EVENTS
from tests.security.check import Check, require
from tests.security.records import Header, batch
from tests.security.target import Target
from tests.security.tenants import (
    Fields,
    Tenant,
    Watched,
    a_command,
    an_account,
    becomes_true,
    give,
    open_tenant,
    publish,
    quarantined,
    still_charges,
)
from tests.security.wire import wire

_SIGNED = b"drawdown finance command 1\0"
_PAIRS = 16


async def _publish(target: Target, tenant: Tenant, command: Fields, headers: list[Header]) -> int:
    """Publish a command to the topic as back-office; return its offset."""
    written = batch([(tenant.key, json.dumps(command).encode(), headers)])
    async with wire(target, "back-office") as kafka:
        code, offset = await kafka.send(FINANCE_COMMANDS, tenant.shard, written)
    require(code == 0, f"Kafka refuses a command of back-office: {code}")
    return offset


async def _outcome(target: Target, command: Fields) -> list[Any]:
    """Return the status and the way of a decided command; empty if it is undecided."""
    rows = await target.rows(f"SELECT status, via FROM ledger.outcomes WHERE command_id = '{command['command_id']}'")
    return rows[0] if rows else []


async def _decided(target: Target, command: Fields) -> list[Any]:
    async def is_there() -> bool:
        return bool(await _outcome(target, command))

    require(await becomes_true(is_there), "it is not decided")
    return await _outcome(target, command)


async def ways(target: Target) -> str:
    """Make the same deposit through the API and on the topic, in the name of the same person."""
    tenant = await open_tenant(target)
    by_api = a_command(tenant.id, "deposit_cash", amount="1")
    answer = await give(target, target.token(centers=[tenant.id], subject="ann"), by_api)
    require(answer.status_code == 200, answer.text[:200])
    by_topic = a_command(tenant.id, "deposit_cash", amount="1", actor={"id": "ann", "role": "admin"})
    await _publish(target, tenant, by_topic, [])
    came = (await _outcome(target, by_api), await _decided(target, by_topic))
    require(came == (["accepted", "api"], ["accepted", "topic"]), came)
    return "the ledger says api of the one and topic of the other"


def _id_of(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def _signature(key_id: str, value: bytes) -> bytes:
    """Return a stranger's signature with this key's id."""
    signed = Ed25519PrivateKey.generate().sign(_SIGNED + value)
    return f"{key_id} ".encode() + base64.b64encode(signed)


async def forged_signatures(target: Target) -> str:
    """As back-office, claim that the API has signed a command."""
    tenant = await open_tenant(target)
    keys = target.secrets / "commands" / "command-keys.pem"
    require(keys.exists(), "the API signs nothing: there are no keys of commands")
    known = load_pem_public_key(keys.read_bytes())
    assert isinstance(known, Ed25519PublicKey)
    claims: dict[str, Callable[[bytes], bytes | None]] = {
        "of the API's key": lambda value: _signature(_id_of(known), value),
        "of an unknown key": lambda value: _signature("0" * 16, value),
        "empty": lambda _: b"",
        "null": lambda _: None,
        "not base64": lambda _: f"{_id_of(known)} !!".encode(),
        "no text": lambda _: b"\xff\xfe",
    }
    let_in = []
    for what, claim in claims.items():
        command = a_command(tenant.id, "deposit_cash", amount="1", actor={"id": "ann", "role": "admin"})
        headers: list[Header] = [(b"drawdown-signature", claim(json.dumps(command).encode()))]
        offset = await _publish(target, tenant, command, headers)

        async def is_dealt_with(offset: int = offset, command: Fields = command) -> bool:
            aside = await quarantined(target, FINANCE_COMMANDS, tenant.shard, offset)
            return bool(aside or await _outcome(target, command))

        require(await becomes_true(is_dealt_with), f"{what}: neither decided nor in quarantine")
        came = await _outcome(target, command)
        let_in += [f"{what}: {came}"] if came[1:] == ["api"] else []
    require(not let_in, let_in)
    return f"{len(claims)} signatures, none of which makes it the API's"


async def unusual_amounts(target: Target) -> str:
    """As ad delivery, charge more at once than the Business Center allows."""
    tenant = await open_tenant(target)
    answer = await give(target, target.token(), a_command(tenant.id, "set_largest_spend", amount="10"))
    require(answer.status_code == 200, f"no bound can be set: {answer.status_code} {answer.text[:150]}")
    offset = await publish(target, tenant, [tenant.spend("999999999999.999999")])

    async def is_aside() -> bool:
        return bool(await quarantined(target, SPEND_EVENTS, tenant.shard, offset))

    require(await becomes_true(is_aside), "10¹² − 10⁻⁶ were charged")
    (aside,) = await quarantined(target, SPEND_EVENTS, tenant.shard, offset)
    require(aside["reason"] == "amount_unusual", aside)
    return "amount_unusual, and not charged"


async def the_same_account(target: Target) -> str:
    """As a tenant with two Business Centers, open the same ad account in both at once."""
    both = await open_tenant(target, 0), await open_tenant(target, target.shards - 1)
    token = target.token(centers=[each.id for each in both])
    async with Watched(target, "allocation"):
        for number in range(_PAIRS):
            opened = an_account(f"{both[0].id}-pair-{number}")
            commands = [a_command(each.id, "open_ad_account", **opened) for each in both]
            answers = await asyncio.gather(*(give(target, token, each) for each in commands))
            came = sorted((answer.status_code, answer.json().get("code") or "") for answer in answers)
            require(came == [(200, ""), (422, "already_exists")], f"pair {number}: {came}")
        charged = await still_charges(target, both[0])
    return f"{_PAIRS} pairs, each time one accepted and one already_exists; {charged}"


async def the_same_command(target: Target) -> str:
    """Repeat another tenant's command id, and one's own id with other content."""
    mine, other = await open_tenant(target), await open_tenant(target)
    theirs = a_command(other.id, "deposit_cash", amount="1")
    require((await give(target, target.token(), theirs)).status_code == 200, "a deposit is refused")
    token = target.token(centers=[mine.id])
    own = {**a_command(mine.id, "deposit_cash", amount="1"), "command_id": theirs["command_id"]}
    first = await give(target, token, own)
    require(other.id not in first.text, first.text[:200])
    again = await give(target, token, {**own, "amount": "2"})
    require(again.json().get("code") == "conflict", again.text[:200])
    fresh = await give(target, token, a_command(other.id, "deposit_cash", amount="1"))
    unknown = await give(target, token, a_command("x" * len(other.id), "deposit_cash", amount="1"))
    require((fresh.status_code, unknown.status_code) == (403, 403), (fresh.status_code, unknown.status_code))
    return f"the same id elsewhere: {first.json().get('status')}; with other content: conflict"


async def odd_actors(target: Target) -> str:
    """Through the API, name somebody else as the actor."""
    tenant = await open_tenant(target)
    command = a_command(tenant.id, "deposit_cash", amount="1", actor={"id": "root", "role": "admin"})
    answer = await give(target, target.token("finance_manager", [tenant.id], subject="eve"), command)
    require(answer.status_code == 200, answer.text[:200])
    rows = await target.rows(
        f"SELECT content::text FROM ledger.outcomes WHERE command_id = '{uuid.UUID(command['command_id'])}'"
    )
    require('"root"' not in rows[0][0] and '"eve"' in rows[0][0], rows[0][0][:200])
    return "the ledger has the token's subject"


CHECKS = (
    Check("commands", "ways", "the same deposit by the API and by the topic", ways),
    Check("commands", "signatures", "signatures on the topic that are not the API's", forged_signatures),
    Check("commands", "actors", "another's name as the actor, by the API", odd_actors),
    Check("commands", "ids", "another tenant's command id", the_same_command),
    Check("commands", "amounts", "a spend of 10¹² where a bound is set", unusual_amounts),
    Check(
        "commands", "accounts", f"{_PAIRS} ad accounts, each opened by two at once", the_same_account, is_quick=False
    ),
)
