"""Everything that decisions depend on is in the database, also while rules, policies and time zones are updated."""

import asyncio
import gc
import json
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import structlog
from structlog.testing import capture_logs

from services.allocation.lease import Lease, claim
from services.allocation.memory import snapshot_pieces, snapshots
from services.allocation.writing.append import BatchWrite, append
from services.auditor.cli import DIFFERS, PASSED
from services.auditor.cli import replay as audit_replay
from shared.ledger import zones as zones_of_the_ledger
from shared.ledger.lookup import plain_types
from shared.ledger.merkle import CompactRange
from shared.ledger.replay import SLICE, Redecider, newer_rules
from shared.ledger.zones import ZonesDifferError, record_zones, recorded_zones, zones_to_write_with
from shared.rules import shard as shard_rules
from shared.rules.calendar import Zones
from shared.rules.instants import to_datetime
from shared.rules.policy import STANDARD, Policy
from shared.rules.shard import Shard
from shared.rules.state import AdAccount, Holding
from shared.rules.versions import CURRENT
from shared.rules.ways import TopicTerms
from shared.runtime.errors import CannotGoOnError
from shared.runtime.settings import Settings
from tests.golden import recorded
from tests.golden.chapters import Told
from tests.golden.deciding import Again
from tests.golden.recorded import SHARD, GoldenBatch, GoldenLedger
from tests.integration.audit_ledger import SHARDS, LedgerWriter, bulk_ledger_works, fold, ledger_writer
from tests.integration.writing import command, kept_state, writing
from tests.model.forms import rfc3339
from tests.model.shards import shard_of
from tests.model.workload import Work, Workload
from tests.zones import INSTALLED, release

OTHER = Policy("other-order", ("ad_credit", "voucher", "cash", "credit"), ("cash", "credit_line"))
USUAL = release("2030a")
MOVED = release("2030b", Asia__Tokyo="America/New_York", Asia__Kathmandu="Pacific/Kiritimati")


@pytest.fixture
async def writer(database_url: str) -> AsyncIterator[LedgerWriter]:
    async with ledger_writer(database_url, (STANDARD, OTHER)) as writer:
        yield writer


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url, server_settings={"timezone": "UTC"})
    await plain_types(connection)
    yield connection
    await connection.close()


async def test_a_refusal_in_a_batch_without_entries_is_decided_again_under_its_own_policy(
    database: asyncpg.Connection, database_url: str
) -> None:
    """By the policies the topic may name everything, nothing, and everything again. Only the refusal names the second
    policy.
    """
    quiet = Policy("quiet", topic=TopicTerms(roles=()))
    tell = Told("quiet", 1)
    async with ledger_writer(database_url, (STANDARD, quiet)) as writer:
        await writer.write([tell.command("open_business_center", currency="USD", time_zone="UTC")])
        for policy in (quiet, STANDARD):
            writer.policy = policy
            writer.now += 1_000_000
            await writer.write([tell.command("deposit_cash", amount="1")])
    codes = await database.fetch("SELECT code, policy_version, via FROM ledger.outcomes ORDER BY sequence")
    accepted = (None, "standard-1", "topic")
    assert [tuple(row) for row in codes] == [accepted, ("permission_denied", "quiet", "topic"), accepted]
    assert await database.fetchval("SELECT count(*) FROM ledger.batches WHERE policy_version = 'quiet'") == 0
    await fold(database_url)
    assert await audited(database_url) == PASSED


async def audited(url: str) -> int:
    return await audit_replay(Settings(database_url=url))


HOLDS = snapshot_pieces.fields_of(Holding).index("remaining")


async def assert_loaded_as_written(database: asyncpg.Connection, writer: LedgerWriter, lease: Lease) -> None:
    """Assert that a load gives the state in the writer's memory."""
    loaded, _ = await snapshots.load(database, lease, STANDARD, 7)
    kept, made = list(snapshot_pieces.dump(writer.rules(lease.shard))), list(snapshot_pieces.dump(loaded))
    for of_shard, _ in (kept[0], made[0]):
        # Fields that a batch without entries changes without a trace.
        del of_shard["now"], of_shard["reached"]
    assert without_used_up_grants(made) == without_used_up_grants(kept)


def without_used_up_grants(pieces: list[Any]) -> list[Any]:
    """Return the pieces without used-up grants, because batches without entries also decide when these leave memory."""
    left: list[Any] = []
    for kind, row in pieces:
        if kind == "Holding" and not row[HOLDS]:
            continue
        if kind != "Holding" and left and left[-1][0] == "Grant":
            left.pop()
        left.append([kind, row])
    return left[:-1] if left[-1][0] == "Grant" else left


async def keep_state(database: asyncpg.Connection, writer: LedgerWriter, lease: Lease) -> None:
    kept = await kept_state(writer.rules(lease.shard), lease.tree)
    await database.execute(
        "INSERT INTO ledger.snapshots VALUES ($1, $2, $3, $4)"
        " ON CONFLICT (shard) DO UPDATE SET position = $2, format = $3, state = $4",
        lease.shard,
        kept.position,
        kept.format,
        kept.state,
    )


async def write_days_of_changes(writer: LedgerWriter, seed: int, between: Any = None, first_rules: int = 1) -> None:
    """Change rules, policy and time zones, each at another time. The zones change back."""
    workload = Workload(seed)
    writer.policy, writer.zones = replace(STANDARD, rules=first_rules), USUAL
    await writer.write(workload.opening(writer.now))
    for step in range(240):
        writer.now += 2_700_000_000 if step % 5 else 0
        policy = OTHER if step % 80 > 50 else STANDARD
        writer.policy = replace(policy, rules=first_rules if step < 60 else CURRENT)
        writer.zones = MOVED if 90 < step < 170 else USUAL
        await writer.write(workload.next(writer.now) for _ in range(1 + step % 4))
        if between is not None and step % 60 == 59:
            await between()


async def test_the_past_is_decided_by_the_recorded_inputs(
    writer: LedgerWriter, database: asyncpg.Connection, database_url: str
) -> None:
    """A shard is loaded from its beginning and from a snapshot, and an auditor finds no difference."""
    leases = writer.leases

    async def keep() -> None:
        for lease in leases:
            await keep_state(database, writer, lease)

    await write_days_of_changes(writer, seed=3)
    await fold(database_url)
    assert await audited(database_url) == PASSED
    for lease in leases:
        await assert_loaded_as_written(database, writer, lease)
    await keep()
    for lease in leases:
        await assert_loaded_as_written(database, writer, lease)
    named = await database.fetch("SELECT DISTINCT rules_version, zones_release FROM ledger.batches ORDER BY 1, 2")
    assert [tuple(row) for row in named] == [(1, "2030a"), (CURRENT, "2030a"), (CURRENT, "2030b")]


async def test_a_release_without_some_zones_is_harmless(
    database: asyncpg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accounts keep their days. A command that names a lost zone is refused: at first, in a replay, and after a load.

    The zone of a shard's only Business Center is lost and comes back. Another release has a zone that no other one has.
    """
    lost = Zones("2030c", {name: data for name, data in INSTALLED.table.items() if name != "EST5EDT"})
    tell = Told("lost", 1)
    kind = {"billing": "monthly_invoicing", "buying_type": "auction", "time_zone": "EST5EDT"}
    async with ledger_writer(database_url, (STANDARD,)) as writer:
        (lease,) = [lease for lease in writer.leases if lease.shard == shard_of(tell.center, SHARDS)]
        for number, zones in enumerate((USUAL, lost, lost, USUAL, lost)):
            monkeypatch.setattr(zones_of_the_ledger, "installed_zones", lambda zones=zones: zones)
            writer.zones = zones
            writer.now += 40_000_000_000
            await writer.write(
                [
                    tell.command("open_business_center", currency="USD", time_zone="EST5EDT")
                    if not number
                    else tell.command("deposit_cash", amount="1"),
                    tell.command("open_ad_account", ad_account_id=f"lost-{number}", **kind),
                ]
            )
            await assert_loaded_as_written(database, writer, lease)
            if number == 2:
                await keep_state(database, writer, lease)
        codes = await database.fetch(
            "SELECT code FROM ledger.outcomes WHERE type = 'open_ad_account' ORDER BY sequence"
        )
        assert [code for (code,) in codes] == [None, "invalid", "invalid", None, "invalid"]
    await fold(database_url)
    assert await audited(database_url) == PASSED
    names = await database.fetch("SELECT name FROM ledger.time_zones WHERE release = '2030c'")
    assert [name for (name,) in names] == ["UTC"]


async def test_an_update_of_the_time_zone_package_is_harmless_and_so_is_a_host_without_it(
    writer: LedgerWriter, database: asyncpg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def keep() -> None:
        for lease in writer.leases:
            await keep_state(database, writer, lease)

    await write_days_of_changes(writer, seed=4, between=keep)
    await fold(database_url)
    monkeypatch.setattr(zones_of_the_ledger, "installed_zones", lambda: Zones("2031z", {}))
    assert await audited(database_url) == PASSED
    for lease in writer.leases:
        await assert_loaded_as_written(database, writer, lease)
    await database.execute("DELETE FROM ledger.snapshots")
    for lease in writer.leases:
        await assert_loaded_as_written(database, writer, lease)


def _with_more_cash(state: bytes) -> bytes:
    """Return a snapshot that can be loaded, but leads to other entries than those that follow it."""
    cash = snapshot_pieces.fields_of(AdAccount).index("cash")
    lines = [json.loads(line) for line in zlib.decompress(state).splitlines()]
    for line in lines:
        for piece in line:
            if isinstance(piece, list) and piece[0] == "AdAccount":
                piece[1][cash] += 10**15
    return zlib.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def _without_its_end(state: bytes) -> bytes:
    """Return a complete stream that ends within a line."""
    return zlib.compress(zlib.decompress(state)[:-20])


@pytest.mark.parametrize(
    "spoiled",
    [
        lambda _: b"",
        lambda _: b"junk",
        lambda state: state[: len(state) // 2],
        lambda state: state[:-4],
        lambda state: zlib.compress(zlib.decompress(state).splitlines()[0][:2] + b"]\n"),
        _without_its_end,
        _with_more_cash,
    ],
    ids=["empty", "junk", "the first half", "without its checksum", "without pieces", "without its end", "other money"],
)
async def test_an_unusable_snapshot_costs_only_time(
    writer: LedgerWriter, database: asyncpg.Connection, spoiled: Callable[[bytes], bytes]
) -> None:
    kept: list[asyncpg.Record] = []

    async def keep() -> None:
        if not kept:
            for lease in writer.leases:
                await keep_state(database, writer, lease)
            kept.extend(await database.fetch("SELECT shard, state FROM ledger.snapshots"))

    await write_days_of_changes(writer, seed=3, between=keep)
    for shard, of_shard in kept:
        await database.execute("UPDATE ledger.snapshots SET state = $2 WHERE shard = $1", shard, spoiled(of_shard))
    with capture_logs() as logs:
        for lease in writer.leases:
            await assert_loaded_as_written(database, writer, lease)
    told = [each["shard"] for each in logs if each["event"].startswith("a snapshot could not be used")]
    same = [shard for shard, of_shard in kept if _lines_of(spoiled(of_shard)) == _lines_of(of_shard)]
    assert sorted([*told, *same]) == [lease.shard for lease in writer.leases]
    assert len(same) < 2  # One shard has no ad account whose money could be changed.


async def test_a_snapshot_that_does_not_fit_into_memory_is_ignored(
    writer: LedgerWriter, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write_days_of_changes(writer, seed=3)
    lease = writer.leases[0]
    await keep_state(database, writer, lease)
    monkeypatch.setattr(snapshots, "memory_limit", lambda: 1)
    with capture_logs() as logs:
        await assert_loaded_as_written(database, writer, lease)
    assert [each["error"] for each in logs if each["event"].startswith("a snapshot could not be used")] == [
        "ValueError('the snapshot does not fit into the memory of this process')"
    ]


def _lines_of(state: bytes) -> Any:
    try:
        return [json.loads(line) for line in zlib.decompress(state).splitlines()]
    except (ValueError, zlib.error):
        return state


async def test_due_timers_take_several_batches_and_an_auditor_agrees(
    writer: LedgerWriter, database: asyncpg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vouchers expire at the same moment, one in each batch. Commands are refused and accepted right behind them.

    The last voucher is used up: it leaves something due, but then writes nothing.
    """
    monkeypatch.setattr(shard_rules, "MOST_TIMER_ENTRIES", 1)
    tell, hour = Told("due", 1), 3_600_000_000
    await writer.write([tell.command("open_business_center", currency="USD", time_zone="UTC"), tell.account("a")])
    await writer.write([tell.command("deposit_cash", ad_account_id="due-a", amount="1")])
    refused, paid = tell.command("disable_automatic_allocation"), tell.command("deposit_cash", amount="1")
    for number, behind in enumerate(([refused, paid], [tell.command("disable_automatic_allocation")], [])):
        until = {"amount": "1", "expires_at": rfc3339(writer.now + hour)}
        vouchers = [tell.command("grant_voucher", voucher_id=f"{number}-{each}", **until) for each in range(3)]
        last = tell.command("grant_voucher", voucher_id=f"{number}-9", ad_account_id="due-a", **until)
        await writer.write([*vouchers, last, tell.spend("a", "1", writer.now)])
        writer.now += 2 * hour
        await writer.write(behind or [tell.spend("a", "0.1", writer.now)])
        writer.now += 1
    await write_days_of_changes(writer, seed=6, first_rules=CURRENT)
    await fold(database_url)
    sizes = await database.fetch(
        "SELECT array_agg(last_position - first_position + 1 ORDER BY last_position) FROM ledger.batches"
        " GROUP BY shard, recorded_at HAVING count(*) > 2 ORDER BY recorded_at"
    )
    assert [row[0] for row in sizes][1:3] == [[1, 1, 1, 1], [1, 1, 1]]
    assert await audited(database_url) == PASSED
    for lease in writer.leases:
        await assert_loaded_as_written(database, writer, lease)


class Watched(Redecider):
    """Counts the decisions between two turns of another task."""

    longest = length = 0

    def between(self) -> None:
        self.length += 1
        self.longest = max(self.longest, self.length)

    async def tick(self) -> None:
        while True:
            self.length = 0
            await asyncio.sleep(0)


async def test_loading_a_shard_does_not_block_other_tasks(writer: LedgerWriter, database: asyncpg.Connection) -> None:
    """Shards are loaded while others are written and heartbeats are sent. A large batch must not delay these."""
    await writer.write(bulk_ledger_works(accounts=2))
    tell = Told("bulk", 1)
    spends = [tell.spend("", "0.01", writer.now).message for _ in range(2 * SLICE)]
    await writer.write(Work("event", {**spend, "ad_account_id": "acct-0"}) for spend in spends)
    [lease] = [lease for lease in writer.leases if lease.position]
    watched = Watched(database, Shard(deduplication_days=None), lease.shard, CompactRange())
    ticking = asyncio.create_task(watched.tick())
    await watched.run(0, lease.position)
    ticking.cancel()
    assert watched.inputs > 2 * SLICE
    assert watched.longest <= SLICE + 1


async def test_loading_a_shard_lets_other_tasks_run_every_few_milliseconds(
    writer: LedgerWriter, database: asyncpg.Connection
) -> None:
    """A shard that is loaded beside a large one needs a few hundred turns of the loop, and waits for each."""
    await writer.write(bulk_ledger_works(accounts=2))
    tell = Told("bulk", 1)
    spends = [tell.spend("", "0.01", writer.now).message for _ in range(15_000)]
    await writer.write(
        Work("event", {**spend, "ad_account_id": "acct-0", "campaign_id": f"c-{number}"})
        for number, spend in enumerate(spends)
    )
    [lease] = [lease for lease in writer.leases if lease.position]
    ratios = [await _longest_turn(database, lease) for _ in range(3)]  # Another process may disturb one of them.
    assert min(ratios) < 1 / 40, f"of the work, one turn took {ratios}"


async def _longest_turn(database: asyncpg.Connection, lease: Lease) -> float:
    """Load a shard. Return how large a part of the work was done in one turn of the event loop."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - before)

    gc.disable()  # The service collects far more rarely than a test.
    try:
        ticking = asyncio.create_task(tick())
        before = time.thread_time()
        await snapshots.load(database, lease, STANDARD, 7, most_campaigns=1_000)
        seconds = time.thread_time() - before
        ticking.cancel()
    finally:
        gc.enable()
    return longest / seconds


async def test_newer_rules_are_refused_with_an_explanation(
    writer: LedgerWriter, database: asyncpg.Connection, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    workload = Workload(1, centers=1)
    writer.policy = replace(STANDARD, rules=CURRENT + 1)
    await writer.write(workload.opening(writer.now))
    [lease] = [lease for lease in writer.leases if lease.position]
    sentence = newer_rules(CURRENT + 1)
    with pytest.raises(CannotGoOnError) as refusal:
        await snapshots.load(database, lease, STANDARD, 7)
    assert str(refusal.value) == f"shard {lease.shard}: {sentence}"
    await fold(database_url)
    assert await audited(database_url) == DIFFERS
    assert f"shard {lease.shard}, position 1: {sentence}" in capsys.readouterr().out


# ---- Recorded time zones ------------------------------------------------------------------------------------------


async def test_a_batch_records_the_zones_that_it_uses_first_and_a_new_release_records_all_used_ones(
    writer: LedgerWriter, database: asyncpg.Connection
) -> None:
    async def held() -> set[tuple[str, str]]:
        return {tuple(row) for row in await database.fetch("SELECT release, name FROM ledger.time_zones")}

    workload = Workload(1, centers=1)
    writer.zones = USUAL
    await writer.write(workload.opening(writer.now))
    used = {zone for _, zone in await held()}
    assert used
    assert used < set(INSTALLED.table)
    assert await held() == {("2030a", zone) for zone in used}
    writer.zones = MOVED
    await writer.write([workload.next(writer.now)])
    assert await held() == {(name, zone) for name in ("2030a", "2030b") for zone in used}


async def test_the_recorded_content_of_a_release_wins_and_a_difference_is_logged(
    database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = INSTALLED.table["Asia/Tokyo"]
    await record_zones(database, INSTALLED.release, [("UTC", other), ("Asia/Tokyo", other)])
    with structlog.testing.capture_logs() as logs:
        zones = zones_to_write_with(await recorded_zones(database, 0, 0, 0))
    assert zones == INSTALLED
    assert (zones.table["UTC"], zones.table["Europe/Kiev"]) == (other, INSTALLED.table["Europe/Kiev"])
    assert [(log["zone"], log["log_level"]) for log in logs] == [("UTC", "warning")]


async def test_two_processes_never_record_different_bytes_for_one_zone(database: asyncpg.Connection) -> None:
    lease, *_ = await claim(database, "test", SHARDS)
    write = BatchWrite(1, "standard-1", 0, 1, zones_release="2030a", zones=[("UTC", b"one")])
    await append(database, lease, write)
    await append(database, lease, replace(write, command_offset=2))
    with pytest.raises(ZonesDifferError, match="another table for UTC in the time-zone release 2030a"):
        await append(database, lease, replace(write, command_offset=3, zones=[("UTC", b"two")]))
    assert await database.fetchval("SELECT command_offset FROM ledger.shards WHERE shard = $1", lease.shard) == 2


async def test_a_restarted_writer_opens_accounts_in_any_zone(settings: Settings) -> None:
    async with writing(settings) as worker:
        center = await worker.opened()
        for zone in ("Asia/Kathmandu", "Europe/Kiev"):
            await worker.stop()
            worker.start()
            fields = {"billing": "prepay", "buying_type": "auction", "time_zone": zone}
            await worker.send(command(center, "open_ad_account", ad_account_id=f"{center}-{zone[:4]}", **fields))
            await worker.decided()
        codes = await worker.database.fetch("SELECT code FROM ledger.outcomes WHERE type = 'open_ad_account'")
        assert [row["code"] for row in codes] == [None, None, None]


# ---- The golden ledger --------------------------------------------------------------------------------------------


async def test_the_golden_ledger_passes_an_audit(database: asyncpg.Connection, database_url: str) -> None:
    golden = recorded.read()
    for policy in golden.policies.values():
        await database.execute("INSERT INTO ledger.policies VALUES ($1, $2)", policy.version, policy.content())
    lease = next(lease for lease in await claim(database, "test", SHARDS) if lease.shard == SHARD)
    for batch, write in writes(golden):
        await append(database, lease, write)
        assert lease.tree.root() == batch.root
    await fold(database_url)
    assert await audited(database_url) == PASSED
    loaded, _ = await snapshots.load(database, lease, STANDARD, 7)
    assert loaded.batch.position + len(loaded.batch.entries) == lease.position


def writes(golden: GoldenLedger) -> Iterator[tuple[GoldenBatch, BatchWrite]]:
    """Yield each golden batch with the write that appends it."""
    again, noted = Again(golden), set()
    for number, batch in enumerate(golden.batches, 1):
        write = BatchWrite(batch.recorded_at, batch.policy, 0, number, batch.rules, batch.zones, batch.rows)
        answers = [(refusal[0], 0, refused(batch, *refusal)) for refusal in batch.refusals]
        if batch.rows:
            first = len(again.entries) + 1
            again.decide(batch)
            answers += accepted(batch, again, first)
            write.accounts = opened(again, first)
        write.outcomes = [row for _, _, row in sorted(answers, key=lambda answer: answer[:2])]
        if batch.zones not in noted:
            noted.add(batch.zones)
            write.zones = list(golden.zones[batch.zones].table.items())
        yield batch, write


def refused(batch: GoldenBatch, position: int, content: dict[str, Any], code: str) -> tuple[Any, ...]:
    answer = ("rejected", code, "refused", None, position, to_datetime(batch.recorded_at), None)
    return (*told(content), *answer)


def accepted(batch: GoldenBatch, again: Again, first: int) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
    entries = again.entries
    for position in range(first, len(entries) + 1):
        line, _, _, source, part, day, _ = entries[position - 1]
        if source is None or part or day is not None:
            continue
        last = position
        while last < len(entries) and entries[last][3] == source:
            last += 1
        details = json.loads(line.details or "")
        answer = ("accepted", None, "done", position, last, to_datetime(batch.recorded_at), details.get("via"))
        yield position - 1, 1, (*told(details["command"]), *answer)


def told(content: dict[str, Any]) -> tuple[Any, ...]:
    command_id = UUID(content["command_id"]).bytes
    return (command_id, True, content["business_center_id"], content["type"], content)


def opened(again: Again, first: int) -> list[tuple[str, str]]:
    lines = [entry[0] for entry in again.entries[first - 1 :]]
    return [(line.ad_account_id or "", line.business_center_id) for line in lines if line.kind == "ad_account_opened"]
