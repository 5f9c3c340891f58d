"""Publishing outcomes to Kafka: a follower of the ledger's outcomes, at least once and in their order."""

import asyncio
import contextlib
import json
from typing import Any, NoReturn

import asyncpg
import structlog
from aiokafka import AIOKafkaProducer

from services.allocation import metrics
from services.allocation.failures import describe
from shared.contracts.fields import format_time
from shared.rules.instants import from_datetime
from shared.runtime.kafka import FINANCE_OUTCOMES
from shared.runtime.retries import GrowingPause
from shared.runtime.settings import BadSettingError
from shared.runtime.stopping import is_asked_to_end

FOLLOWER = "outcomes"
MOST_OUTCOMES = 1_000
LOOK_SECONDS = 1.0  # the longest time between two looks, even if `written` was not set


async def publish_outcomes(
    database: asyncpg.Pool, producer: AIOKafkaProducer, shard: int, written: asyncio.Event
) -> NoReturn:
    """Publish the outcomes of one shard until cancelled. A failure is tried again, and no other shard waits for it.

    Raises BadSettingError if the settings now lead to another database than at the start.

    Args:
        database: connections with the role of allocation.
        producer: publishes to the topic of outcomes.
        shard: a shard that this process owns.
        written: an event that is set when the shard has committed outcomes.

    """
    pause, published = GrowingPause(), 0
    while True:
        written.clear()
        try:
            while (some := await _publish_some(database, producer, shard)) > 0:
                published += some
        except BadSettingError:
            raise
        except Exception as error:
            if is_asked_to_end() or database.is_closing():  # The pool is cut off at a stop that takes too long.
                raise asyncio.CancelledError from error
            seconds = pause.next(published)
            structlog.get_logger().error(
                "publishing outcomes failed: it is tried again",
                shard=shard,
                again_in_seconds=seconds,
                error=describe(error),
            )
            await asyncio.sleep(seconds)
            continue
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await written.wait()


async def _publish_some(database: asyncpg.Pool | asyncpg.Connection, producer: AIOKafkaProducer, shard: int) -> int:
    last, done = await database.fetchrow(
        "SELECT outcome_sequence, coalesce(c.position, 0) FROM ledger.shards s"
        " LEFT JOIN ledger.checkpoints_outcomes c ON c.shard = s.shard AND follower = $1 WHERE s.shard = $2",
        FOLLOWER,
        shard,
    )
    metrics.OUTCOMES_WAITING.labels(shard).set(last - done)
    rows = await database.fetch(
        "SELECT * FROM ledger.outcomes WHERE shard = $1 AND sequence > $2 AND sequence <= $3"
        " ORDER BY sequence LIMIT $4",
        shard,
        done,
        last,
        MOST_OUTCOMES,
    )
    if not rows:
        return 0
    # All messages are made before the first is sent. Otherwise one that fails would send the others at each try.
    messages = [(str(row["command_id"]).encode(), json.dumps(_message(row)).encode()) for row in rows]
    sent = [await producer.send(FINANCE_OUTCOMES, key=key, value=value) for key, value in messages]
    await asyncio.gather(*sent)
    await database.execute(
        "INSERT INTO ledger.checkpoints_outcomes AS known (follower, shard, position, recorded_at)"
        " VALUES ($1, $2, $3, $4)"
        " ON CONFLICT (follower, shard) DO UPDATE SET position = excluded.position, recorded_at = excluded.recorded_at"
        # The previous owner of the shard may still be publishing. Its last position must not overwrite a later one.
        " WHERE known.position < excluded.position",
        FOLLOWER,
        shard,
        rows[-1]["sequence"],
        rows[-1]["recorded_at"],
    )
    return len(rows)


def _message(row: Any) -> dict[str, Any]:
    return {
        "command_id": str(row["command_id"]),
        "business_center_id": row["business_center_id"],
        "type": row["type"],
        "status": row["status"],
        "code": row["code"],
        "message": row["message"],
        "shard": row["shard"],
        "position": row["position"],
        "via": row["via"],
        "recorded_at": format_time(from_datetime(row["recorded_at"])),
    }
