"""A batch is closed by the bytes that it writes: quarantine, records for other shards, refused commands."""

import json
from typing import Any

import pytest

from services.allocation.deciding import Decider
from services.allocation.memory.looking_up import Known
from services.allocation.records.batch_bounds import Bounds
from services.allocation.records.batch_decoding import decode
from services.allocation.records.record_decoding import Raw
from services.allocation.writing.append import BatchWrite
from shared.rules.policy import STANDARD
from shared.rules.shard import Shard
from shared.runtime.kafka import FINANCE_COMMANDS, SPEND_EVENTS
from tests.integration.writing import command, spend
from tests.model.shards import shard_of
from tests.model.test_model import START_US
from tests.zones import INSTALLED

KIB = 1024
BYTES = 1024 * KIB
SHARDS = 4
HERE, ELSEWHERE = (next(f"bc-{n}" for n in range(100) if shard_of(f"bc-{n}", SHARDS) == shard) for shard in (0, 1))


def raw(topic: str, offset: int, message: Any) -> Raw:
    value = message if isinstance(message, bytes) else json.dumps(message).encode()
    return Raw(topic, 0, offset, b"key", value, [("name", b"x" * 100)])


LARGE = {
    "broken spends": (SPEND_EVENTS, b"{" * 50 * KIB),
    "spends of an unknown account": (SPEND_EVENTS, spend(HERE, note="x" * 50 * KIB)),
    "spends of another shard": (SPEND_EVENTS, spend(ELSEWHERE, note="x" * 50 * KIB)),
    "broken commands": (FINANCE_COMMANDS, b"{" * 50 * KIB),
    "refused commands": (FINANCE_COMMANDS, command(HERE, "deposit_cash", amount="1", note="x" * 50 * KIB)),
    "commands for another shard": (
        FINANCE_COMMANDS,
        command(ELSEWHERE, "deposit_cash", amount="1", note="x" * 50 * KIB),
    ),
}


@pytest.mark.parametrize(("topic", "message"), LARGE.values(), ids=LARGE)
async def test_hundreds_of_large_records_are_split_into_several_batches(topic: str, message: Any) -> None:
    decider = Decider(
        0, SHARDS, Shard(STANDARD, zones=INSTALLED), STANDARD, INSTALLED, Bounds(5_000, BYTES, 20_000, 60.0)
    )
    records = [raw(topic, offset, message) for offset in range(100)]
    left = await decode(*((records, []) if topic == FINANCE_COMMANDS else ([], records)))
    sizes = []
    while left:
        write = BatchWrite(0, STANDARD.version, 0, 0)
        decision = await decider.decide(left, Known(), START_US, write)
        decided = left.decided(decision.commands, decision.events)
        left = left.without(decided)
        sizes.append(len(decided))
        assert len(write.quarantined) + len(write.forwarded) + len(write.outcomes) == len(decided)
    assert sum(sizes) == 100
    assert max(sizes) <= BYTES // (50 * KIB) + 1
    assert len(sizes) == 5
