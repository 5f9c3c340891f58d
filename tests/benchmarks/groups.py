"""The cost of a consumer group: how long each partition is not read while members join, leave and die.

`python -m tests.benchmarks.groups` starts Apache Kafka in a container. A member only notes the times at which records
arrive. It has no state to load, so a real group's pauses would be longer. Compare docs/decisions/leases.md.
"""

import asyncio
import logging
import signal
import sys
import time
from collections import defaultdict
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

from tests.containers import KafkaContainer

PARTITIONS = 16
PERIOD_SECONDS = 0.05
SESSION_MS, HEARTBEAT_MS = 6_000, 250  # The shortest session that a broker allows by default.
PHASE_SECONDS = 12.0
KINDS = {
    "eager": (RoundRobinPartitionAssignor, False),
    "eager, sticky": (StickyPartitionAssignor, False),
    "eager, sticky, static members": (StickyPartitionAssignor, True),
}


async def member(servers: str, kind: str, name: str) -> None:
    """Print the partition and the time of each record until asked to end; then leave the group."""
    assignor, is_static = KINDS[kind]
    consumer = AIOKafkaConsumer(
        kind.replace(", ", "-").replace(" ", "-"),
        bootstrap_servers=servers,
        group_id=f"group-{kind}",
        group_instance_id=name if is_static else None,
        partition_assignment_strategy=(assignor,),
        session_timeout_ms=SESSION_MS,
        heartbeat_interval_ms=HEARTBEAT_MS,
        enable_auto_commit=False,
        fetch_max_wait_ms=10,
    )
    await consumer.start()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)  # type: ignore[union-attr]
    try:
        async for record in consumer:
            print(record.partition, time.time(), flush=True)
    finally:
        await consumer.stop()


class Group:
    """The processes of the members, and the records that they have seen."""

    def __init__(self, servers: str, kind: str, directory: Path) -> None:
        self._servers, self._kind, self._directory = servers, kind, directory
        self._members: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, name: str) -> None:
        """Start one more member, or restart one under its name."""
        with (self._directory / name).open("a") as output:
            command = (sys.executable, "-m", "tests.benchmarks.groups", self._servers, self._kind, name)
            self._members[name] = await asyncio.create_subprocess_exec(*command, stdout=output)

    async def end(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a member; return when it has ended."""
        self._members[name].send_signal(number)
        await self._members[name].wait()

    async def end_all(self) -> None:
        """End the members that still run."""
        for each in self._members.values():
            with suppress(ProcessLookupError):
                each.kill()
            await each.wait()

    def longest_pause(self, since: float, until: float) -> float:
        """Return the longest time without a record of a partition between the two moments, in seconds."""
        seen: dict[str, list[float]] = defaultdict(list)
        for file in self._directory.iterdir():
            for line in file.read_text().splitlines():
                partition, moment = line.split()
                seen[partition].append(float(moment))
        pauses = []
        for moments in seen.values():
            within = sorted([since, *(each for each in moments if since <= each <= until), until])
            pauses.append(max(after - before for before, after in pairwise(within)))
        return max(pauses)


async def measure(servers: str, kind: str) -> dict[str, float]:
    """Return the longest pause of any partition for each event in the group."""
    topic = kind.replace(", ", "-").replace(" ", "-")
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=servers)
    await producer.start()

    async def flow() -> None:
        while True:
            for partition in range(PARTITIONS):
                await producer.send(topic, b"spend", partition=partition)
            await asyncio.sleep(PERIOD_SECONDS)

    flowing = asyncio.create_task(flow())
    pauses: dict[str, float] = {}
    with TemporaryDirectory() as directory:
        group = Group(servers, kind, Path(directory))

        async def phase(what: str, *changes: asyncio.Future[None]) -> None:
            since = time.time()
            await asyncio.gather(*changes)
            await asyncio.sleep(PHASE_SECONDS)
            pauses[what] = group.longest_pause(since, time.time())

        await group.start("one")
        await asyncio.sleep(PHASE_SECONDS)
        await phase("nothing")
        await phase("1 to 3", *map(asyncio.ensure_future, (group.start("two"), group.start("three"))))
        await phase("asked to end", asyncio.ensure_future(group.end("two", signal.SIGTERM)))
        await phase("killed", asyncio.ensure_future(group.end("one", signal.SIGKILL)))
        await group.end_all()
    flowing.cancel()
    with suppress(asyncio.CancelledError):
        await flowing
    await producer.stop()
    return pauses


def main() -> None:
    """Measure each kind of group, and print the longest pauses. With arguments, run as a member."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # It reports every step of a rebalance.
    if len(sys.argv) > 1:
        with suppress(asyncio.CancelledError):
            asyncio.run(member(*sys.argv[1:]))
        return
    with KafkaContainer() as kafka:
        for kind in KINDS:
            pauses = asyncio.run(measure(kafka.bootstrap_servers, kind))
            print(f"{kind}: " + ", ".join(f"{what} {seconds:.2f} s" for what, seconds in pauses.items()), flush=True)


if __name__ == "__main__":
    main()
