"""The one way to follow the ledger: each range once, followers in turns, and whichever process dies."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from services.balance.service import FOLLOWER as BALANCE
from services.signals import service as signals
from services.signals.messages import signal, signal_key
from shared.ledger.follow import Follower, Progress, Range, advance, follow, follower_connection
from shared.runtime.health import Health
from shared.runtime.incarnation import incarnation
from shared.runtime.kafka import DELIVERY_SIGNALS, create_producer
from shared.runtime.settings import BadSettingError, Settings
from shared.runtime.topics import ensure_topics
from tests.acceptance.front_door import until
from tests.integration.followers_ledger import Ledger, allow_erasing

BEGIN = "INSERT INTO ledger.checkpoints (follower, shard) VALUES ($1, 0)"
CHECKPOINT = "SELECT position FROM ledger.checkpoints WHERE follower = $1 AND shard = 0"
PATIENCE_SECONDS = 20
END = b"the end of this partition"


def deposits(count: int, shard: int = 0) -> Ledger:
    ledger = Ledger(shard)
    for _ in range(count):
        ledger.add("deposit", "bc-1", holder="business_center", pocket="cash", amount=1)
    return ledger


def pauses(*entities: tuple[str, str | None, list[str]]) -> Ledger:
    """Return a ledger in which each entity gets these sets of causes in order. Without a campaign it is the account."""
    ledger = Ledger()
    before: dict[tuple[str, str | None], set[str]] = {}
    for account, campaign, causes in entities:
        had = before.get((account, campaign), set())
        before[account, campaign] = set(causes)
        kind = "pause" if had < set(causes) else "resume"
        (cause,) = had ^ set(causes)
        ledger.add(kind, "bc-1", account, campaign_id=campaign, cause=cause, details={"causes": causes})
    return ledger


@pytest.fixture
async def admin(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    await allow_erasing(connection)
    yield connection
    await connection.close()


@pytest.fixture
def database(database_url: str) -> Settings:
    return Settings(database_url=database_url)


@pytest.fixture
async def connection(database: Settings) -> AsyncIterator[asyncpg.Connection]:
    async with follower_connection(database, "balance") as connection:
        yield connection


@pytest.fixture
async def publishing(database: Settings) -> AsyncIterator[asyncpg.Connection]:
    async with follower_connection(database, "signals") as connection:
        yield connection


async def cash(admin: asyncpg.Connection) -> int:
    return int(await admin.fetchval("SELECT COALESCE(sum(amount), 0) FROM balance.pockets"))


async def test_a_range_is_bounded_and_moves_the_checkpoint(
    admin: asyncpg.Connection, connection: asyncpg.Connection
) -> None:
    seen: list[Range] = []

    async def fold(_connection: asyncpg.Connection, entries: Range) -> int:
        seen.append(entries)
        return entries.last

    follower = Follower("balance", fold, longest_range=4)
    ledger = deposits(10)
    await ledger.write(admin)
    await admin.execute(BEGIN, "balance")

    steps = [await advance(connection, follower, 0) for _ in range(4)]

    assert steps == [Progress(4, 6), Progress(4, 2), Progress(2, 0), Progress(0, 0)]
    assert seen == [Range(0, 1, 4), Range(0, 5, 8), Range(0, 9, 10)]
    recorded_at = await admin.fetchval("SELECT recorded_at FROM ledger.checkpoints WHERE shard = 0")
    assert recorded_at == ledger.entries[-1].recorded_at


async def test_a_fold_that_fails_leaves_nothing_behind(
    admin: asyncpg.Connection, connection: asyncpg.Connection
) -> None:
    async def fold(connection: asyncpg.Connection, entries: Range) -> int:
        await BALANCE.fold(connection, entries)
        raise RuntimeError("killed here")

    await deposits(10).write(admin)
    await admin.execute(BEGIN, "balance")
    with pytest.raises(RuntimeError, match="killed here"):
        await advance(connection, Follower("balance", fold), 0)
    assert (await cash(admin), await admin.fetchval(CHECKPOINT, "balance")) == (0, 0)

    await advance(connection, BALANCE, 0)
    assert (await cash(admin), await admin.fetchval(CHECKPOINT, "balance")) == (10, 10)


async def test_two_processes_of_one_follower_take_turns(admin: asyncpg.Connection, database: Settings) -> None:
    follower = Follower("balance", BALANCE.fold, longest_range=7)
    await deposits(500).write(admin)
    await admin.execute(BEGIN, "balance")

    async def work() -> None:
        async with follower_connection(database, "balance") as connection:
            while (await advance(connection, follower, 0)).behind:
                pass

    await asyncio.gather(*(work() for _ in range(3)))

    assert (await cash(admin), await admin.fetchval(CHECKPOINT, "balance")) == (500, 500)


async def test_a_follower_wakes_when_notified_and_notifies_when_it_has_folded(
    admin: asyncpg.Connection, database: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.ledger.follow.POLL_SECONDS", 3600)
    folded: asyncio.Queue[object] = asyncio.Queue()
    await admin.add_listener("balance", lambda *notification: folded.put_nowait(notification[-1]))
    following = asyncio.create_task(follow(database, BALANCE, Health()))
    try:
        for position in (1, 2, 3):  # The first entry may be found at the start, the others only by listening.
            ledger = Ledger(first=position)
            ledger.add("deposit", "bc-1", holder="business_center", pocket="cash", amount=1)
            await ledger.write(admin)
            assert await asyncio.wait_for(folded.get(), PATIENCE_SECONDS) == "0"
            assert await cash(admin) == position
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_notifications_without_a_valid_shard_harm_no_follower(
    admin: asyncpg.Connection, database: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Any login of the database may send any notification."""
    folded: asyncio.Queue[object] = asyncio.Queue()
    await admin.add_listener("balance", lambda *notification: folded.put_nowait(notification[-1]))
    following = asyncio.create_task(follow(database, BALANCE, Health()))
    try:
        await deposits(1).write(admin)
        await asyncio.wait_for(folded.get(), PATIENCE_SECONDS)
        for payload in ("99", "-1", "", "0x0", "no shard", "٣"):
            await admin.execute("SELECT pg_notify('ledger', $1)", payload)
        more = Ledger(first=2)
        more.add("deposit", "bc-1", holder="business_center", pocket="cash", amount=1)
        await more.write(admin)
        assert await asyncio.wait_for(folded.get(), PATIENCE_SECONDS) == "0"
        assert await cash(admin) == 2
        assert not following.done()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert caplog.records == []  # asyncio would log an error that is raised while a notification is handled.


@pytest.mark.parametrize("shards", [1, 3, 5, 64])
async def test_a_number_of_shards_that_differs_from_the_ledger_is_reported_at_once(
    database: Settings, shards: int
) -> None:
    asked = database.model_copy(update={"shards": shards})
    told = f"DRAWDOWN_SHARDS is {shards}, but the ledger has {database.shards} shards: set DRAWDOWN_SHARDS=4"
    with pytest.raises(BadSettingError, match=told):
        await follow(asked, BALANCE, Health())


async def test_a_lost_connection_is_replaced(admin: asyncpg.Connection, database: Settings) -> None:
    folded: asyncio.Queue[object] = asyncio.Queue()
    await admin.add_listener("balance", lambda *notification: folded.put_nowait(notification[-1]))
    following = asyncio.create_task(follow(database, BALANCE, Health()))
    try:
        await deposits(3).write(admin)
        await asyncio.wait_for(folded.get(), PATIENCE_SECONDS)
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'balance' "
            "AND datname = current_database()"
        )
        more = Ledger(first=4)
        more.add("deposit", "bc-1", holder="business_center", pocket="cash", amount=1)
        await more.write(admin)
        await asyncio.wait_for(folded.get(), PATIENCE_SECONDS)
        assert await cash(admin) == 4
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_an_error_in_a_fold_delays_only_its_shard(admin: asyncpg.Connection, database: Settings) -> None:
    failures, mended, health = 0, asyncio.Event(), Health()

    async def fold(connection: asyncpg.Connection, entries: Range) -> int:
        nonlocal failures
        if entries.shard == 1 and not mended.is_set():
            failures += 1
            raise ValueError("no such kind")
        return await BALANCE.fold(connection, entries)

    async def has_failed_twice() -> bool:
        return failures >= 2

    async def says(*expected: object) -> bool:
        return health.work() == expected

    async def is_at(shard: int, position: int) -> bool:
        query = "SELECT position FROM ledger.checkpoints WHERE follower = 'balance' AND shard = $1"
        return bool(await admin.fetchval(query, shard) == position)

    await deposits(1, shard=1).write(admin)
    following = asyncio.create_task(follow(database, Follower("balance", fold, longest_range=2), health))
    try:
        await until("it has failed twice", has_failed_twice)
        await deposits(3, shard=2).write(admin)
        await until("another shard is followed", partial(is_at, 2, 3))
        assert health.work() == (False, "shard 1 is not followed: ValueError: no such kind")
        mended.set()
        await until("it goes on", partial(is_at, 1, 1))
        await until("that is said", partial(says, True, "following"))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_an_error_that_concerns_all_shards_ends_the_follower(
    admin: asyncpg.Connection, database: Settings
) -> None:
    async def fold(_connection: asyncpg.Connection, _entries: Range) -> int:
        raise ValueError("no broker")

    await deposits(1).write(admin)
    with pytest.raises(ValueError, match="no broker"):
        await asyncio.wait_for(
            follow(database, Follower("balance", fold, ends_by=(ValueError,)), Health()), PATIENCE_SECONDS
        )


async def published(settings: Settings, count: int) -> list[tuple[bytes, dict[str, Any]]]:
    """Return all signals as (key, message), in the topic's order for each key. There must be `count`."""
    await mark_the_ends(settings)
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_bootstrap_servers, auto_offset_reset="earliest")
    await consumer.start()
    signals: list[tuple[bytes, dict[str, Any]]] = []
    try:
        consumer.assign([TopicPartition(DELIVERY_SIGNALS, n) for n in range(settings.shards)])
        open_ends = settings.shards
        async with asyncio.timeout(PATIENCE_SECONDS):
            while open_ends:
                record = await consumer.getone()
                if record.key == END:
                    open_ends -= 1
                else:
                    signals.append((record.key, json.loads(record.value)))
    finally:
        await consumer.stop()
    assert len(signals) == count
    return signals


async def mark_the_ends(settings: Settings) -> None:
    """Publish a record behind those of each partition, because a broker may not know its end offsets at once."""
    producer = await create_producer(settings)
    try:
        for partition in range(settings.shards):
            await producer.send_and_wait(DELIVERY_SIGNALS, b"{}", key=END, partition=partition)
    finally:
        await producer.stop()


async def test_each_pause_and_resume_is_published_once_in_order(
    admin: asyncpg.Connection, publishing: asyncpg.Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "MOST_SIGNALS", 2)
    both = ["ad_account_budget", "business_center_balance"]
    ledger = pauses(
        ("acct-1", None, ["ad_account_budget"]),
        ("acct-1", None, both),
        ("acct-1", "cmp-1", ["campaign_budget"]),
        ("acct-1", None, ["ad_account_budget"]),
        ("acct-1", "cmp-1", []),
    )
    ledger.add("deposit", "bc-1", holder="business_center", pocket="cash", amount=1)
    await ledger.write(admin)
    await admin.execute(BEGIN, "signals")
    await ensure_topics(settings)
    producer = await create_producer(settings)
    try:
        follower = signals.follower(producer)
        while (await advance(publishing, follower, 0)).behind:
            pass
        assert (await advance(publishing, follower, 0)).folded == 0
    finally:
        await producer.stop()

    messages = await published(settings, 5)

    def of(key: bytes) -> list[tuple[Any, ...]]:
        return [(m["position"], m["change"], m["delivering"], m["causes"]) for k, m in messages if k == key]

    assert of(b"ad_account/acct-1") == [
        (1, "paused", False, ["ad_account_budget"]),
        (2, "causes_changed", False, both),
        (4, "causes_changed", False, ["ad_account_budget"]),
    ]
    assert of(b"campaign/acct-1/cmp-1") == [
        (3, "paused", False, ["campaign_budget"]),
        (5, "resumed", True, []),
    ]


async def test_an_empty_broker_gets_the_last_signal_of_every_entity(
    admin: asyncpg.Connection, publishing: asyncpg.Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "MOST_SIGNALS", 2)
    await pauses(
        ("acct-1", None, ["ad_account_budget"]),
        ("acct-2", None, ["ad_account_budget"]),
        ("acct-2", "cmp-1", ["campaign_budget"]),
        ("acct-2", None, []),
        ("acct-3", None, ["ad_account_budget"]),
    ).write(admin)
    deposit = Ledger(first=6)
    deposit.add("deposit", "bc-1", "acct-4", holder="ad_account", pocket="cash", amount=1)
    await deposit.write(admin)
    await admin.execute(BEGIN, "signals")
    # They were published to a broker that no longer exists.
    gone = _Forgetful()
    while (await advance(publishing, signals.follower(gone), 0)).behind:
        pass
    assert gone.sent == 5
    # Forged entries: some are no signals, some belong to another entity.
    await admin.execute("INSERT INTO signals.latest VALUES (0, 'acct-4', '', 6), (0, 'acct-5', '', 1)")
    await ensure_topics(settings)
    producer = await create_producer(settings)
    try:
        cluster = await incarnation(settings, DELIVERY_SIGNALS)
        await signals.publish_present_state(settings, producer, cluster)
        await signals.publish_present_state(settings, producer, cluster)
    finally:
        await producer.stop()

    messages = await published(settings, 4)

    assert sorted((key, message["position"], message["change"]) for key, message in messages) == [
        (b"ad_account/acct-1", 1, "paused"),
        (b"ad_account/acct-2", 4, "resumed"),
        (b"ad_account/acct-3", 5, "paused"),
        (b"campaign/acct-2/cmp-1", 3, "paused"),
    ]


class _Forgetful:
    """A producer whose broker acknowledges records but keeps none."""

    def __init__(self) -> None:
        self.sent = 0

    async def send(self, _topic: str, _value: bytes, key: bytes) -> asyncio.Future[None]:
        self.sent += 1
        acknowledgement: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        acknowledgement.set_result(None)
        return acknowledgement


async def test_a_signal_that_is_not_acknowledged_keeps_the_checkpoint(
    admin: asyncpg.Connection, publishing: asyncpg.Connection
) -> None:
    class Refusing:
        async def send(self, _topic: str, _value: bytes, key: bytes) -> asyncio.Future[None]:
            refusal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            refusal.set_exception(ConnectionError("no broker"))
            return refusal

    await pauses(("acct-1", None, ["ad_account_budget"])).write(admin)
    await admin.execute(BEGIN, "signals")

    with pytest.raises(ConnectionError, match="no broker"):
        await advance(publishing, signals.follower(Refusing()), 0)

    assert await admin.fetchval(CHECKPOINT, "signals") == 0
    assert await admin.fetchval("SELECT count(*) FROM signals.latest") == 0


@pytest.mark.parametrize(
    ("kind", "causes", "change"),
    [
        ("pause", ["campaign_budget"], "paused"),
        ("pause", ["ad_account_balance", "campaign_budget"], "causes_changed"),
        ("resume", ["campaign_budget"], "causes_changed"),
        ("resume", [], "resumed"),
    ],
)
def test_a_signal_says_whether_the_causes_became_empty_or_ceased_to_be(
    kind: str, causes: list[str], change: str
) -> None:
    entry = Ledger().add(kind, "bc-1", "acct-1", campaign_id="cmp-1", cause="campaign_budget")
    record = {**vars(entry), "details": json.dumps({"causes": causes})}

    message = signal(record)

    assert (message.change, message.delivering, message.causes) == (change, not causes, causes)
    assert message.recorded_at == "2026-11-21T12:00:00.000000Z"
    assert signal_key(record) == b"campaign/acct-1/cmp-1"
