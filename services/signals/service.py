"""Publishes each pause and resume of the ledger to `delivery.signals`, at least once and in order.

The lock of the checkpoint is held until the broker has acknowledged. Otherwise a slow process could publish an old
signal behind a newer one of another process, and a compacted topic would keep the old one. `last_word` corrects signals
that are still late, because the session of the database ended meanwhile.
"""

import asyncpg
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from services.signals.last_word import read_signals_back
from services.signals.publishing import LOCK, NAME, send
from shared.ledger.channels import DELIVERY_CHANNEL
from shared.ledger.follow import Follower, Range, follow, follower_connection
from shared.runtime.errors import CannotGoOnError
from shared.runtime.health import Health, serving_health
from shared.runtime.incarnation import incarnation, wait_for_another_incarnation
from shared.runtime.kafka import DELIVERY_SIGNALS, create_producer, stop_client
from shared.runtime.reachability import watch_broker_reachability
from shared.runtime.settings import Settings
from shared.runtime.stopping import close_within, first_to_end
from shared.runtime.topics import ensure_topics

MOST_SIGNALS = 5_000  # In one batch. Bounds memory, and how long the checkpoint is locked.
STOP_SECONDS = 4.0  # At shutdown, for publishing in progress: longer than a follower needs.

_CHANGES = """
    SELECT shard, position, kind, business_center_id, ad_account_id, campaign_id, cause, details, source_event_id,
        occurred_at, recorded_at
    FROM ledger.entries WHERE shard = $1 AND position BETWEEN $2 AND $3 AND kind IN ('pause', 'resume')
    ORDER BY position LIMIT $4
"""
_REMEMBER = """
    INSERT INTO signals.latest AS l (shard, ad_account_id, campaign_id, position)
    SELECT shard, ad_account_id, COALESCE(campaign_id, ''), max(position)
    FROM ledger.entries WHERE shard = $1 AND position BETWEEN $2 AND $3 AND kind IN ('pause', 'resume')
    GROUP BY 1, 2, 3
    ON CONFLICT (shard, ad_account_id, campaign_id) DO UPDATE SET position = excluded.position
"""
_CLUSTER = "SELECT cluster_id FROM signals.incarnations WHERE shard = $1"
_STATE = """
    SELECT shard, position, e.kind, e.business_center_id, e.ad_account_id, e.campaign_id, e.cause, e.details,
        e.source_event_id, e.occurred_at, e.recorded_at
    FROM signals.latest l JOIN ledger.entries e USING (shard, position)
    WHERE shard = $1 AND (l.ad_account_id, l.campaign_id) > ($2, $3) AND e.kind IN ('pause', 'resume')
        AND e.ad_account_id = l.ad_account_id AND COALESCE(e.campaign_id, '') = l.campaign_id
    ORDER BY l.ad_account_id, l.campaign_id LIMIT $4
"""
_SET_CLUSTER = """
    INSERT INTO signals.incarnations (shard, cluster_id) VALUES ($1, $2)
    ON CONFLICT (shard) DO UPDATE SET cluster_id = excluded.cluster_id, checked_offset = 0
"""


class ClusterChangedError(CannotGoOnError):
    """The topic was replaced, so the signals in it are lost. The next start publishes the present state again."""


async def run(settings: Settings) -> None:
    """Publish until cancelled. A broker that does not have the present state yet gets that first.

    Raises:
        ClusterChangedError: the broker or the topic was replaced while we ran.
        aiokafka.errors.KafkaError: a signal was not acknowledged in time.

    """
    async with serving_health(settings) as health:
        broker = health.reachability("the broker")
        # If the database refuses this login or has a wrong schema, the start ends before it connects to the broker.
        async with follower_connection(settings, NAME):
            pass
        await ensure_topics(settings)
        cluster = await incarnation(settings, DELIVERY_SIGNALS)
        producer = await create_producer(settings)
        try:
            await first_to_end(
                watch_broker_reachability(broker, producer),
                _watch(settings, cluster),
                _publish_and_follow(settings, producer, cluster, health),
                seconds=STOP_SECONDS,
            )
        finally:
            await close_within(stop_client(producer))


async def _publish_and_follow(settings: Settings, producer: AIOKafkaProducer, cluster: str, health: Health) -> None:
    await publish_present_state(settings, producer, cluster)
    await first_to_end(
        follow(settings, follower(producer), health), read_signals_back(settings, producer), seconds=STOP_SECONDS
    )


def follower(producer: AIOKafkaProducer) -> Follower:
    """Return the follower that publishes through `producer`."""

    async def fold(connection: asyncpg.Connection, entries: Range) -> int:
        changes = await connection.fetch(_CHANGES, *entries, MOST_SIGNALS)
        if not changes:
            return entries.last
        reached: int = changes[-1]["position"] if len(changes) == MOST_SIGNALS else entries.last
        acknowledged = await send(producer, changes)
        # The table is written while the signals are on their way, so that it does not delay a pause.
        await connection.execute(_REMEMBER, entries.shard, entries.first, reached)
        await acknowledged
        return reached

    return Follower(NAME, fold, wakes_on=DELIVERY_CHANNEL, connections=4, ends_by=(KafkaError,))


async def publish_present_state(settings: Settings, producer: AIOKafkaProducer, cluster: str) -> None:
    """Publish the last signal of every entity again, unless this cluster already has them.

    The embedded broker is empty after each start, but the ledger is not.
    """
    async with follower_connection(settings, NAME) as connection:
        for shard in range(settings.shards):
            async with connection.transaction():
                await connection.execute(LOCK, NAME, shard)
                if await connection.fetchval(_CLUSTER, shard) != cluster:
                    published = await _publish_shard(connection, producer, shard)
                    await connection.execute(_SET_CLUSTER, shard, cluster)
                    structlog.get_logger().info(
                        "published the present state to a new broker", shard=shard, entities=published
                    )


async def _publish_shard(connection: asyncpg.Connection, producer: AIOKafkaProducer, shard: int) -> int:
    """Publish the last signals of a shard in batches; return how many there were."""
    published, after = 0, ("", "")
    while entries := await connection.fetch(_STATE, shard, *after, MOST_SIGNALS):
        await (await send(producer, entries))
        published += len(entries)
        after = (entries[-1]["ad_account_id"], entries[-1]["campaign_id"] or "")
    return published


async def _watch(settings: Settings, cluster: str) -> None:
    now = await wait_for_another_incarnation(settings, cluster, DELIVERY_SIGNALS)
    raise ClusterChangedError(
        f"Kafka was {cluster!r} and is now {now!r}: the next start publishes the present state to it"
    )
