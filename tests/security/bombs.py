"""The door of records: few bytes on the wire that become many in memory, and records that no producer would send."""

import asyncio
import gzip
import json
import time
from collections.abc import Callable
from functools import cache

from shared.runtime.kafka import DELIVERY_SIGNALS, FINANCE_COMMANDS, SPEND_EVENTS
from tests.security.check import Check, UnfitError, require
from tests.security.records import (
    CODECS,
    CONTROL,
    TRANSACTIONAL,
    Record,
    batch,
    bomb,
    packed,
    record,
    sealed,
    varint,
    zstd_frame,
    zstd_raw,
    zstd_skipped,
    zstd_zeros,
)
from tests.security.target import Target
from tests.security.tenants import (
    GIVEN_UP_SECONDS,
    Tenant,
    Watched,
    a_command,
    becomes_true,
    give,
    is_charged,
    open_tenant,
    publish,
    quarantined,
    still_charges,
)
from tests.security.wire import wire

_MIB = 2**20
# How many records of a mebibyte fit into a megabyte, compressed.
_COUNTS = {"gzip": 900, "snappy": 19, "lz4": 220, "zstd": 900}
_USERS = {SPEND_EVENTS: "ad-delivery", FINANCE_COMMANDS: "back-office"}
_NAMED_RECORDS = 3_000
_NAMES = 900
# The limit for a command of another shard meanwhile.
_WAITS_SECONDS = 2.0
_LONG_RECORDS = 5_000
_LONG_BYTES = 60_000
_LONG_BATCH = 200
_CAMPAIGNS = 300_000
_CAMPAIGNS_BATCH = 2_000
_CAMPAIGNS_SECONDS = 120.0
_SHARE_OF_MEMORY = 0.7
_CENTERS = 60
_VOUCHERS = 100
_VOUCHERS_BATCH = 20
_TIED_BY_ONE = 1_000


@cache
def _bomb(codec: str) -> bytes:
    return bomb(b"nobody", codec, _COUNTS[codec], _MIB)


def _thrown(topic: str, codec: str) -> Check:
    async def throw(target: Target) -> str:
        """Send it, and report its outcome and that of a spend behind it."""
        tenant = await open_tenant(target)
        written = await asyncio.to_thread(_bomb, codec)
        async with Watched(target, "allocation"):
            async with wire(target, _USERS[topic]) as kafka:
                code, offset = await kafka.send(topic, tenant.shard, written)
            require(code == 0, f"Kafka refuses it: {code}")
            charged = await still_charges(target, tenant)
            aside = await quarantined(target, topic, tenant.shard, offset, offset + _COUNTS[codec] - 1)
        require([row["reason"] for row in aside] == ["too_large"], f"{len(aside)} rows in quarantine: {aside[:2]}")
        now, most = await target.memory_mib("allocation")
        kept = f"{len(written):,} bytes: one row of {aside[0]['bytes']} bytes"
        return f"{kept}; {charged}; {now:.0f} MiB, at most {most:.0f}"

    where = {SPEND_EVENTS: "spend", FINANCE_COMMANDS: "commands"}[topic]
    return Check(
        "bombs", f"{codec}-{where}", f"a batch of {codec} on {topic} that unpacks to {_COUNTS[codec]} MiB", throw
    )


def _thrown_at_signals(codec: str) -> Check:
    async def throw(target: Target) -> str:
        """Send it with the password of signals, and wait until signals has read back what is behind it."""
        partition = (await open_tenant(target)).shard
        written = await asyncio.to_thread(_bomb, codec)
        async with Watched(target, "signals"):
            async with wire(target, "drawdown-signals") as kafka:
                code, _ = await kafka.send(DELIVERY_SIGNALS, partition, written)
                require(code == 0, f"Kafka refuses it: {code}")
                _, behind = await kafka.send(DELIVERY_SIGNALS, partition, batch([(b"nobody", b"{}", ())]))
            is_read = await becomes_true(lambda: _is_read_back(target, partition, behind), GIVEN_UP_SECONDS)
            require(is_read, f"signals has not read offset {behind} of partition {partition} back")
        now, most = await target.memory_mib("signals")
        return f"{len(written):,} bytes: signals goes on; {now:.0f} MiB, at most {most:.0f}"

    return Check(
        "bombs", f"{codec}-signals", f"a batch of {codec} in the signals that unpacks to {_COUNTS[codec]} MiB", throw
    )


async def _is_read_back(target: Target, partition: int, offset: int) -> bool:
    (answer,) = await target.sql(
        "signals", [f"SELECT checked_offset FROM signals.incarnations WHERE shard = {partition}"]
    )
    return bool(answer.rows) and int(answer.rows[0][0]) > offset


async def odd_batches(target: Target) -> str:
    """Send batches with a valid checksum whose content is not what they claim."""
    tenant = await open_tenant(target)
    one = record(0, tenant.key, b"{}")
    odd = {
        **{f"{codec} that is none": sealed(b"\xff" * 500, 1, codec) for codec in CODECS if codec != "none"},
        **{f"{codec} cut off": sealed(packed([one * 50], codec)[:-9], 50, codec) for codec in CODECS},
        **{f"{codec} of nothing": sealed(packed([], codec), 1, codec) for codec in CODECS},
        "a billion records in a few bytes": sealed(packed([one], "gzip"), 2**30, "gzip"),
        "fewer records than it says": sealed(packed([one], "zstd"), 3, "zstd"),
        "more records than it says": sealed(packed([one, record(1, b"k", b"{}")], "lz4"), 1, "lz4"),
        "a record longer than the batch": sealed(packed([b"\xfe\xff\xff\xff\x0f" + one], "gzip"), 1, "gzip"),
    }
    good = sealed(packed([one], "none"), 1, "none")
    never = {
        "a transaction of nobody": sealed(one, 1, "none", TRANSACTIONAL),
        "a control batch": sealed(one, 1, "none", CONTROL),
        "another checksum": good[:-1] + b"x",
        "two batches in one": good * 2,
        "1.2 MB": batch([(tenant.key, b"x" * 1_200_000, ())]),
    }
    taken = []
    async with Watched(target, "allocation"):
        for what, written in {**odd, **never}.items():
            taken += [what] if await _is_taken(target, tenant, written) else []
        charged = await still_charges(target, tenant)
    require(not never.keys() & set(taken), taken)
    return f"{len(odd) + len(never) - len(taken)} refused by Kafka, {len(taken)} taken; {charged}"


async def _is_taken(target: Target, tenant: Tenant, written: bytes) -> bool:
    async with wire(target, "ad-delivery") as kafka:
        code, _ = await kafka.send(SPEND_EVENTS, tenant.shard, written)
    return code == 0


def _one_record_of_zeros(mib: int) -> bytes:
    """Return a batch of one record whose value has this many mebibytes."""
    size = mib * _MIB
    head = b"\0" + varint(0) + varint(0) + varint(-1) + varint(size)
    blocks = [zstd_raw(varint(len(head) + size + 1) + head), *[zstd_zeros(131_072)] * (8 * mib)]
    return sealed(zstd_frame([*blocks, zstd_zeros(1, is_last=True)]), 1, "zstd")


def _framed(one: bytes) -> dict[str, bytes]:
    """Return one record in frames that are valid, and that no library makes."""
    empty_gzip, plain_gzip = gzip.compress(b""), gzip.compress(one)
    empty, plain = zstd_frame([zstd_raw(b"", is_last=True)]), zstd_frame([zstd_raw(one, is_last=True)])
    return {
        "gzip behind 20,000 empty members": sealed(empty_gzip * 20_000 + plain_gzip, 1, "gzip"),
        "zstd behind 50,000 empty frames": sealed(empty * 50_000 + plain, 1, "zstd"),
        "zstd of 100,000 empty blocks": sealed(
            zstd_frame([zstd_raw(b"")] * 100_000 + [zstd_raw(one, is_last=True)]), 1, "zstd"
        ),
        "zstd behind 50,000 frames to be skipped": sealed(zstd_skipped(0) * 50_000 + plain, 1, "zstd"),
        "zstd behind half a megabyte to be skipped": sealed(zstd_skipped(500_000) + plain, 1, "zstd"),
        "zstd with a window of 128 MiB": sealed(zstd_frame([zstd_raw(one, is_last=True)], 27), 1, "zstd"),
        "zstd with a window of 2 GiB": sealed(zstd_frame([zstd_raw(one, is_last=True)], 31), 1, "zstd"),
        "zstd with a byte behind it": sealed(plain + b"x", 1, "zstd"),
    }


async def odd_frames(target: Target) -> str:
    """Send a valid spend in each frame, and a record of 900 MiB: each is charged, quarantined, or refused by Kafka."""
    tenant = await open_tenant(target)
    came: dict[str, str] = {}
    async with Watched(target, "allocation"):
        written = {"one record of 900 MiB": (_one_record_of_zeros(900), tenant.spend())}
        for what in _framed(b""):
            spend = tenant.spend()
            written[what] = _framed(record(0, tenant.key, json.dumps(spend).encode()))[what], spend
        for what, (each, spend) in written.items():
            came[what] = await _outcome_of(target, tenant, each, spend["event_id"])
        charged = await still_charges(target, tenant)
    lost = [what for what, became in came.items() if became == "lost"]
    require(not lost, f"neither charged nor in quarantine: {lost}")
    return f"{', '.join(f'{what}: {became}' for what, became in came.items())}; {charged}"


async def _outcome_of(target: Target, tenant: Tenant, written: bytes, event_id: str) -> str:
    async with wire(target, "ad-delivery") as kafka:
        code, offset = await kafka.send(SPEND_EVENTS, tenant.shard, written)
    if code:
        return "refused"
    await still_charges(target, tenant)
    aside = await quarantined(target, SPEND_EVENTS, tenant.shard, offset)
    return aside[0]["reason"] if aside else "charged" if await is_charged(target, event_id, 1) else "lost"


async def odd_headers(target: Target) -> str:
    """Send valid spends with odd headers."""
    tenant = await open_tenant(target)
    odd: dict[str, list[tuple[bytes, bytes | None]]] = {
        "a name that is not UTF-8": [(b"\xff\xfe", b"x")],
        "a null value": [(b"x", None)],
        "an empty name": [(b"", b"x")],
        "a NUL in name and value": [(b"a\0", b"\0")],
        "the same name a hundred times": [(b"x", b"y")] * 100,
        "ce_specversion null": [(b"ce_specversion", None)],
        "ce_subject null": [(b"ce_specversion", b"1.0"), (b"ce_id", b"%d"), (b"ce_subject", None)],
        "a signature": [(b"drawdown-signature", None)],
    }
    spends = {what: tenant.spend() for what in odd}
    async with Watched(target, "allocation"):
        for what, headers in odd.items():
            own = [(name, spends[what]["event_id"].encode() if value == b"%d" else value) for name, value in headers]
            await publish(target, tenant, [spends[what]], own)
        charged = await still_charges(target, tenant)
    lost = [
        what
        for what, spend in spends.items()
        if "specversion null" not in what and not await is_charged(target, spend["event_id"])
    ]
    require(not lost, f"not charged: {lost}")
    return f"{len(odd)} spends with odd headers: all that are good are charged; {charged}"


async def many_names(target: Target) -> str:
    """Send records with millions of headers whose names are not text, and measure how long another shard waits."""
    tenant = await open_tenant(target)
    other = await open_tenant(target, (tenant.shard + 1) % target.shards)
    one = record(0, tenant.key, b"{}", [(b"\xfc", b"")] * _NAMES)
    numbered = [record(n, tenant.key, b"{}", [(b"\xfc", b"")] * _NAMES) for n in range(_NAMED_RECORDS)]
    written = sealed(packed(numbered, "zstd"), _NAMED_RECORDS, "zstd")
    took = []
    async with Watched(target, "allocation"):
        async with wire(target, "ad-delivery") as kafka:
            code, first = await kafka.send(SPEND_EVENTS, tenant.shard, written)
        require(code == 0, f"Kafka refuses the batch: {code}")
        spend = tenant.spend()
        await publish(target, tenant, [spend])
        behind = asyncio.create_task(is_charged(target, spend["event_id"], GIVEN_UP_SECONDS))
        while not behind.done():
            began = time.monotonic()
            await give(target, target.token(), a_command(other.id, "deposit_cash", amount="1"))
            took.append(time.monotonic() - began)
        require(await behind, "the spend behind it is not charged")
    aside = await quarantined(target, SPEND_EVENTS, tenant.shard, first, first + _NAMED_RECORDS - 1)
    require(len(aside) == _NAMED_RECORDS, f"of {_NAMED_RECORDS} records {len(aside)} are in quarantine")
    require(max(took) < _WAITS_SECONDS, f"a command of another shard took {max(took):.1f} s")
    return (
        f"{len(written):,} bytes: {_NAMED_RECORDS:,} times {len(one):,} bytes of names; others' commands meanwhile took"
        f" {1000 * sorted(took)[len(took) // 2]:.0f} ms in the middle, {1000 * max(took):.0f} ms at most"
    )


def _small(tenant: Tenant, padding: str, campaign: str) -> Record:
    event = {**tenant.spend("0.000001", campaign), "padding": padding}
    return tenant.key, json.dumps(event).encode(), ()


async def _pour(target: Target, tenant: Tenant, count: int, each: int, make: Callable[[int], Record]) -> None:
    """Publish records in batches compressed with zstd."""
    async with wire(target, "ad-delivery") as kafka:
        for begin in range(0, count, each):
            written = await asyncio.to_thread(batch, [make(n) for n in range(begin, min(count, begin + each))], "zstd")
            code, _ = await kafka.send(SPEND_EVENTS, tenant.shard, written)
            require(code == 0, f"Kafka refuses a batch: {code}")


async def long_records(target: Target) -> str:
    """Send as many records of the largest size as fit into one batch of the writer."""
    tenant, padding = await open_tenant(target), "x" * (_LONG_BYTES - 400)
    async with Watched(target, "allocation"):
        await _pour(target, tenant, _LONG_RECORDS, _LONG_BATCH, lambda _: _small(tenant, padding, "brand"))
        spend = tenant.spend()
        await publish(target, tenant, [spend])
        require(await is_charged(target, spend["event_id"], 60), "a spend behind them is not charged within 60 s")
        now, most = await target.memory_mib("allocation")
    return f"{_LONG_RECORDS:,} spends of {_LONG_BYTES:,} bytes are charged; {now:.0f} MiB, at most {most:.0f}"


async def many_campaigns(target: Target) -> str:
    """Spend a millionth on each of very many new campaigns."""
    tenant = await open_tenant(target)
    limit = (await target.inspect("allocation"))["HostConfig"]["Memory"] / _MIB
    before, _ = await target.memory_mib("allocation")
    began = time.monotonic()
    async with Watched(target, "allocation"):
        await _pour(target, tenant, _CAMPAIGNS, _CAMPAIGNS_BATCH, lambda n: _small(tenant, "", f"invented-{n}"))
        sent = time.monotonic() - began
        spend = tenant.spend()
        await publish(target, tenant, [spend])
        is_so = await is_charged(target, spend["event_id"], _CAMPAIGNS_SECONDS)
        require(is_so, f"a spend behind them is not charged within {_CAMPAIGNS_SECONDS:.0f} s")
        charged = await still_charges(target, tenant)
    memory, _ = await target.memory_mib("allocation")
    require(memory < _SHARE_OF_MEMORY * limit, f"allocation has {memory:.0f} of {limit:.0f} MiB (before: {before:.0f})")
    return f"{_CAMPAIGNS:,} sent in {sent:.0f} s: from {before:.0f} to {memory:.0f} of {limit:.0f} MiB; {charged}"


async def loaded_again(target: Target) -> str:
    """Restart the writer, which must load all that the ledger names by now."""
    tenant = await open_tenant(target)
    before = (await target.inspect("allocation"))["State"]["StartedAt"]
    await target.compose("restart", "allocation")
    require((await target.inspect("allocation"))["State"]["StartedAt"] != before, "it was not started again")
    async with Watched(target, "allocation"):
        charged = await still_charges(target, tenant)
    now, most = await target.memory_mib("allocation")
    return f"{charged}; {now:.0f} MiB, at most {most:.0f}"


async def _name_campaigns(target: Target, tenant: Tenant) -> None:
    """As back-office, grant vouchers that tie as many campaigns as a Business Center may."""
    vouchers = [
        a_command(
            tenant.id,
            "grant_voucher",
            voucher_id=f"v{number}",
            amount="1",
            ad_account_id=tenant.account,
            campaign_ids=[f"{number}-{n}" for n in range(_TIED_BY_ONE)],
            actor={"id": "ann", "role": "admin"},
        )
        for number in range(_VOUCHERS)
    ]
    async with wire(target, "back-office") as kafka:
        for begin in range(0, _VOUCHERS, _VOUCHERS_BATCH):
            records = [
                (tenant.key, json.dumps(each).encode(), ()) for each in vouchers[begin : begin + _VOUCHERS_BATCH]
            ]
            code, _ = await kafka.send(FINANCE_COMMANDS, tenant.shard, batch(records, "zstd"))
            require(code == 0, f"Kafka refuses a batch: {code}")


async def many_tied(target: Target) -> str:
    """Tie as many campaigns as a Business Center may, in many Business Centers."""
    tenants: list[Tenant] = []
    async with Watched(target, "allocation"):
        for _ in range(_CENTERS):
            try:
                tenants.append(await open_tenant(target))
            except UnfitError as error:
                require("limit_reached" in str(error), str(error))  # A full shard opens no further Business Center.
                continue
            await _name_campaigns(target, tenants[-1])
        charged = await still_charges(target, tenants[-1])
        memory, _ = await target.memory_mib("allocation")
    accepted = await _accepted_until_the_limit(target, [tenant.id for tenant in tenants])
    return f"{len(tenants)} Business Centers, {accepted * _TIED_BY_ONE:,} names held: {memory:.0f} MiB; {charged}"


async def _accepted_until_the_limit(target: Target, centers: list[str]) -> int:
    """Return how many of these vouchers were accepted; others must have been refused by the bound."""
    rows = await target.rows(
        "SELECT coalesce(code, status), count(*) FROM ledger.outcomes WHERE type = 'grant_voucher'"
        f" AND business_center_id IN ({', '.join(repr(center) for center in centers)}) GROUP BY 1"
    )
    counts = {code: int(count) for code, count in rows}
    require(set(counts) == {"accepted", "limit_reached"}, f"of the vouchers became {counts}")
    return counts["accepted"]


CHECKS = (
    Check("bombs", "frames", "frames that are empty, skipped, without end, or want a window of 2 GiB", odd_frames),
    Check("bombs", "headers", "names that are no text, null values", odd_headers),
    Check("bombs", "names", f"{_NAMED_RECORDS:,} records of {_NAMES} headers whose names are no text", many_names),
    Check("bombs", "batches", "batches that are not what they say", odd_batches),
    *(_thrown(topic, codec) for topic in _USERS for codec in _COUNTS),
    *(_thrown_at_signals(codec) for codec in _COUNTS),
    Check("bombs", "long", f"{_LONG_RECORDS:,} records of {_LONG_BYTES:,} bytes", long_records, is_quick=False),
    Check("bombs", "campaigns", f"{_CAMPAIGNS:,} invented campaigns", many_campaigns, is_quick=False),
    Check("bombs", "restart", "the writer is started again behind all of that", loaded_again, is_quick=False),
)
LAST = (
    Check(
        "bombs", "vouchers", f"{_CENTERS} Business Centers at their bound of tied campaigns", many_tied, is_quick=False
    ),
)
