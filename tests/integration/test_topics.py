"""Topics on Apache Kafka: created as the ledger needs them, refused if they differ, and recognised when they were
recreated.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from uuid import uuid4

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from drawdown.local.system import prepare
from services.allocation.operating.offsets import adopt
from shared.runtime.incarnation import incarnation, is_same_incarnation
from shared.runtime.kafka import (
    DELIVERY_SIGNALS,
    FINANCE_COMMANDS,
    SPEND_EVENTS,
    TOPICS,
    create_producer,
    start_client,
)
from shared.runtime.settings import Settings
from shared.runtime.topics import TopicsDoNotFitError, ensure_topics
from tests.acceptance.front_door import FrontDoor, until
from tests.acceptance.platform import Record
from tests.containers import ContainerBroker
from tests.model.shards import shard_of
from tests.servers import RunningSystem, running_system

pytestmark = pytest.mark.containers

CENTER = "shop"  # and its only account


@pytest.fixture
async def admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    await client.start()
    yield client
    await client.close()


async def make(
    admin: AIOKafkaAdminClient, name: str, configs: dict[str, str] | None = None, partitions: int = 4
) -> None:
    response = await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=configs)])
    assert [code for _, code, *_ in response.topic_errors] == [0]


async def test_topics_are_created_for_production(settings: Settings, admin: AIOKafkaAdminClient) -> None:
    await ensure_topics(settings.model_copy(update={"deduplication_days": 30}))
    (response,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic) for topic in TOPICS])
    made = {name: {entry[0]: entry[1] for entry in entries} for _, _, _, name, entries in response.resources}
    for topic in TOPICS:
        assert made[topic]["min.insync.replicas"] == "1"  # one broker
        assert made[topic]["unclean.leader.election.enable"] == "false"
        assert made[topic]["max.message.bytes"] == "1048588"
    for topic in (SPEND_EVENTS, FINANCE_COMMANDS):
        assert made[topic]["cleanup.policy"] == "delete"
        assert made[topic]["retention.ms"] == str(30 * 86_400_000)
        assert made[topic]["retention.bytes"] == "-1"
        assert made[topic]["message.timestamp.type"] == "LogAppendTime"
    assert made[DELIVERY_SIGNALS]["cleanup.policy"] == "compact"


@pytest.mark.parametrize(
    ("topic", "configs", "sentence"),
    [
        (SPEND_EVENTS, {"cleanup.policy": "compact"}, "cleanup.policy is compact, so .*cleanup.policy=delete'"),
        (FINANCE_COMMANDS, {"cleanup.policy": "compact,delete"}, "cleanup.policy is compact,delete, so "),
        (DELIVERY_SIGNALS, {"cleanup.policy": "delete"}, "cleanup.policy is delete, so .*cleanup.policy=compact'"),
        (SPEND_EVENTS, {"retention.ms": "604799999"}, "retention.ms is 604799999, so .*retention.ms=604800000'"),
        (SPEND_EVENTS, {"retention.bytes": "1000000000"}, "retention.bytes is 1000000000, so .*retention.bytes=-1'"),
        (SPEND_EVENTS, {"min.insync.replicas": "2"}, "min.insync.replicas is 2, so .*min.insync.replicas=1'"),
        (SPEND_EVENTS, {"unclean.leader.election.enable": "true"}, "unclean.leader.election.enable is true, so "),
    ],
)
async def test_a_topic_that_loses_records_is_refused(
    settings: Settings, admin: AIOKafkaAdminClient, topic: str, configs: dict[str, str], sentence: str
) -> None:
    await make(admin, topic, configs)
    with pytest.raises(TopicsDoNotFitError) as raised:
        await ensure_topics(settings)
    assert re.match(f"topic {topic}: {sentence}", str(raised.value)), str(raised.value)
    assert "\n" not in str(raised.value)


async def test_topics_that_keep_more_than_needed_are_accepted(settings: Settings, admin: AIOKafkaAdminClient) -> None:
    await make(admin, SPEND_EVENTS, {"retention.ms": "-1"})
    await make(admin, FINANCE_COMMANDS, {"retention.ms": "999999999999"})
    await ensure_topics(settings)


async def test_a_wrong_number_of_partitions_is_refused(settings: Settings, admin: AIOKafkaAdminClient) -> None:
    await make(admin, SPEND_EVENTS, partitions=3)
    with pytest.raises(TopicsDoNotFitError, match=r"topic spend\.events: has 3 partitions, but DRAWDOWN_SHARDS is 4"):
        await prepare(settings)


async def test_a_recreated_topic_is_another_incarnation(settings: Settings, admin: AIOKafkaAdminClient) -> None:
    await ensure_topics(settings)
    cluster = (await admin.describe_cluster())["cluster_id"]
    before = await incarnation(settings, SPEND_EVENTS, FINANCE_COMMANDS)
    assert re.fullmatch(rf"{cluster} spend\.events=[\w-]{{22}} finance\.commands=[\w-]{{22}}", before)
    assert await incarnation(settings, SPEND_EVENTS, FINANCE_COMMANDS) == before
    await recreate_topic(settings, admin)
    after = await incarnation(settings, SPEND_EVENTS, FINANCE_COMMANDS)
    assert after.split()[::2] == before.split()[::2]
    assert after.split()[1] != before.split()[1]
    assert not is_same_incarnation(before, after)
    assert is_same_incarnation(cluster, after)  # as the previous version kept it


async def recreate_topic(settings: Settings, admin: AIOKafkaAdminClient, topic: str = SPEND_EVENTS) -> None:
    """Delete and recreate a topic; return when it is empty."""
    await admin.delete_topics([topic])

    async def has_gone() -> bool | None:
        return True if topic not in await admin.list_topics() else None

    await until(f"{topic} has gone", has_gone)
    await ensure_topics(settings)


async def test_every_producer_is_idempotent(settings: Settings, kafka: ContainerBroker) -> None:
    """The broker knows the producer's id and its last sequence number, so it recognises repetitions."""
    await ensure_topics(settings)
    producer = await create_producer(settings)
    try:
        for number in range(3):
            await producer.send_and_wait(SPEND_EVENTS, str(number).encode(), partition=1)
        assert re.search(r"^\d+\s+0\s+-1\s+2\s", await producers_known(kafka, SPEND_EVENTS, 1), re.MULTILINE)
    finally:
        await producer.stop()


async def producers_known(kafka: ContainerBroker, topic: str, partition: int) -> str:
    """Return what the broker says about a partition's idempotent producers: id, epoch, last sequence number, …"""
    command = ["/opt/kafka/bin/kafka-transactions.sh", "--bootstrap-server", "localhost:9093"]
    command += ["describe-producers", "--topic", topic, "--partition", str(partition)]
    code, said = await asyncio.to_thread(kafka.container.get_wrapped_container().exec_run, command)
    assert code == 0, said
    return str(said.decode())


@dataclass
class Shop:
    """A system with one Business Center, and the spend that was published for it."""

    system: RunningSystem
    door: FrontDoor
    database: asyncpg.Connection
    admin: AIOKafkaAdminClient
    published: list[Record]

    async def publish(self, count: int) -> None:
        """Publish this many new spends."""
        self.published += [self._spend() for _ in range(count)]
        await self.publish_again(count)

    async def publish_again(self, count: int) -> None:
        """Publish the last ones once more."""
        for sent in [await self.door.publish_soon(event) for event in self.published[len(self.published) - count :]]:
            await sent

    def _spend(self) -> Record:
        return {
            "type": "spend",
            "event_id": str(uuid4()),
            "business_center_id": CENTER,
            "ad_account_id": CENTER,
            "campaign_id": "brand",
            "amount": "0.01",
            "currency": "USD",
            "occurred_at": datetime.now(UTC).isoformat(),
        }

    async def is_refused(self) -> str:
        """Wait until allocation ends by itself without a stack trace; return its last line."""
        child = self.system.services["allocation"].child
        assert child is not None
        assert await child.wait(30), "allocation goes on"
        assert child.exit_code() == 1
        said = self.system.log_of("allocation")
        assert "Traceback" not in said, said
        return said.splitlines()[-1]

    async def adopt(self) -> None:
        """Adopt the new topics, and continue."""
        await adopt(self.system.settings)
        await self.system.restart_service("allocation")

    async def every_spend_is_charged_once(self) -> None:
        """Assert that the ledger has everything that was published, each spend once, and nothing else."""
        await self.door.fence(*[shard_of(CENTER, self.system.settings.shards)])
        charged = await self.database.fetch(
            "SELECT source_event_id::text AS id, sum(amount) AS amount FROM ledger.entries"
            " WHERE business_center_id = $1 AND campaign_id = 'brand' AND amount IS NOT NULL GROUP BY 1",
            CENTER,
        )
        assert {row["id"]: row["amount"] for row in charged} == {each["event_id"]: -10_000 for each in self.published}


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    async with running_system() as system, FrontDoor(system) as door:
        account = {"ad_account_id": CENTER, "billing": "prepay", "buying_type": "auction", "time_zone": "UTC"}
        await door.accepted(CENTER, "open_business_center", currency="USD", time_zone="UTC")
        await door.accepted(CENTER, "open_ad_account", **account)
        await door.accepted(CENTER, "deposit_cash", ad_account_id=CENTER, amount="1000")
        database = await asyncpg.connect(system.database_url)
        admin = AIOKafkaAdminClient(bootstrap_servers=system.bootstrap_servers)
        await admin.start()
        yield Shop(system, door, database, admin, [])
        await admin.close()
        await database.close()


async def test_a_topic_recreated_while_allocation_is_down_is_refused_and_can_be_adopted(shop: Shop) -> None:
    await shop.publish(20)
    await shop.every_spend_is_charged_once()
    await shop.system.kill_service("allocation")
    await recreate_topic(shop.system.settings, shop.admin)
    await shop.publish(30)  # More than before, so that the old offset lies within the new topic.
    shop.system.services["allocation"].start()
    assert "'drawdown offsets adopt'" in await shop.is_refused()
    await shop.adopt()
    await shop.every_spend_is_charged_once()


@pytest.mark.parametrize("refill", [0, 200])
async def test_a_topic_recreated_under_a_running_allocation_is_refused_and_can_be_adopted(
    shop: Shop, refill: int
) -> None:
    await shop.publish(50)
    await shop.every_spend_is_charged_once()
    await recreate_topic(shop.system.settings, shop.admin)
    await shop.publish(refill)
    assert "'drawdown offsets adopt'" in await shop.is_refused()
    await shop.publish(10)
    await shop.adopt()
    await shop.every_spend_is_charged_once()


async def test_a_topic_whose_retention_was_too_short_is_refused_and_can_be_adopted(shop: Shop) -> None:
    await shop.publish(20)
    await shop.every_spend_is_charged_once()
    await shop.system.kill_service("allocation")
    await shop.publish(30)
    shard = shard_of(CENTER, shop.system.settings.shards)
    lost = 10 + await shop.database.fetchval("SELECT spend_offset FROM ledger.shards WHERE shard = $1", shard)
    await shop.admin.delete_records({TopicPartition(SPEND_EVENTS, shard): RecordsToDelete(lost)})
    shop.system.services["allocation"].start()

    async def waiting() -> str | None:
        said = await shop.database.fetchval("SELECT detail FROM ledger.shard_states WHERE shard = $1", shard)
        return said if said and "retention" in said else None

    said = await until("the shard waits", waiting)
    assert f"begins at offset {lost}, the ledger needs {lost - 10} next" in said
    await shop.system.kill_service("allocation")
    await shop.adopt()
    await shop.publish_again(30)
    await shop.every_spend_is_charged_once()


async def test_a_ledger_that_knows_only_the_cluster_continues_and_records_the_topics(shop: Shop) -> None:
    await shop.system.kill_service("allocation")
    cluster = (await shop.admin.describe_cluster())["cluster_id"]
    await shop.database.execute("UPDATE ledger.shards SET incarnation = $1", cluster)
    await shop.publish(5)
    await shop.system.restart_service("allocation")
    await shop.every_spend_is_charged_once()
    known = await shop.database.fetchval(
        "SELECT incarnation FROM ledger.shards WHERE shard = $1", shard_of(CENTER, shop.system.settings.shards)
    )
    assert known == await incarnation(shop.system.settings, SPEND_EVENTS, FINANCE_COMMANDS)


async def test_a_recreated_topic_of_signals_gets_the_present_state(shop: Shop) -> None:
    await shop.door.accepted(CENTER, "set_budget", ad_account_id=CENTER, mode="daily", amount="0.01")
    await shop.publish(2)
    key = f"ad_account/{CENTER}"
    await until("a pause", lambda: first_signal(shop.system.settings, key))
    await recreate_topic(shop.system.settings, shop.admin, DELIVERY_SIGNALS)
    signals = shop.system.services["signals"].child
    assert signals is not None
    assert await signals.wait(30)
    await shop.system.restart_service("signals")
    signal = await until("the pause again", lambda: first_signal(shop.system.settings, key))
    assert not signal["delivering"]


async def first_signal(settings: Settings, key: str) -> Record | None:
    """Return the first signal of a key in the topic."""
    consumer = await start_client(settings, partial(AIOKafkaConsumer, DELIVERY_SIGNALS), auto_offset_reset="earliest")
    try:
        for records in (await consumer.getmany(timeout_ms=1000)).values():
            for record in records:
                if record.key == key.encode():
                    signal: Record = json.loads(record.value)
                    return signal
        return None
    finally:
        await consumer.stop()
