"""Quarantine has a partition for each month: the first writer of a month creates it, the ledger's owner drops it, and
audits check it.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg
import pytest

from drawdown.command_line import quarantine_dropping
from drawdown.command_line.quarantine_dropping import drop_month
from services.allocation.lease import Lease, claim
from services.allocation.writing.append import BatchWrite, append
from services.auditor.cli import PASSED, replay, verify
from shared.rules.instants import from_datetime
from shared.runtime.errors import CannotGoOnError
from shared.runtime.postgres import connect
from shared.runtime.settings import BadSettingError, Settings
from tests.acceptance.front_door import until
from tests.servers import run_to_its_end

ROLE = "drawdown_allocation"


@pytest.fixture
def ledger(database_url: str) -> Settings:
    return Settings(database_url=database_url)


@pytest.fixture
async def database(ledger: Settings) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(ledger.database_url)
    yield connection
    await connection.close()


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def rows(moment: datetime, count: int, of: tuple[int, int] | None = None) -> list[tuple[object, ...]]:
    held = (None, None, None, *of) if of else (b"key", b"x" * 100, None, None, None)
    return [("malformed", "why", "spend.events", 0, n, *held, None, moment, None, None) for n in range(count)]


async def write(ledger: Settings, *parts: tuple[int, str, int], of: tuple[int, int] | None = None) -> None:
    """Write batches with no more rights than a writer has: shard, ledger time and number of quarantined records.

    Shards are written at the same time. With `of`, the records are failed replays of that record.
    """
    owner = secrets.token_hex(4)
    connection = await connect(ledger, ROLE, f"drawdown allocation {owner}")
    try:
        leases = await claim(connection, owner, 4)
        await asyncio.gather(
            *(_write(ledger, lease, [each for each in parts if each[0] == lease.shard], of) for lease in leases)
        )
    finally:
        await connection.close()


async def _write(ledger: Settings, lease: Lease, parts: list[tuple[int, str, int]], of: tuple[int, int] | None) -> None:
    connection = await connect(ledger, ROLE, "test")
    try:
        for _, moment, count in parts:
            batch = BatchWrite(from_datetime(at(moment)), "none", lease.spend_offset, lease.command_offset)
            batch.quarantined = rows(at(moment), count, of)
            await append(connection, lease, batch)
    finally:
        await connection.close()


async def months(database: asyncpg.Connection) -> dict[str, int]:
    """Return how many records each partition holds, without empty ones."""
    found = await database.fetch(
        "SELECT tableoid::regclass::text, count(*) FROM ledger.quarantine GROUP BY 1 ORDER BY 1"
    )
    return {row[0].removeprefix("ledger.quarantine_"): row[1] for row in found}


async def drop(ledger: Settings, month: str, answer: bool = True) -> tuple[int, str]:
    """Drop the month; return the exit code, and the summary that was shown for confirmation."""
    asked: list[str] = []

    def confirm(told: str) -> bool:
        asked.append(told)
        return answer

    return await drop_month(ledger, month, "the disk is full", confirm), "\n".join(asked)


async def found_by_both(ledger: Settings, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the difference that each of the two audits finds."""
    found = []
    for audit in (verify, replay):
        capsys.readouterr()
        assert await audit(ledger, as_json=True) == 1
        found.append(json.loads(capsys.readouterr().out)["difference"])
    return found


SPREAD = ((0, "2026-06-30T23:59:59", 3), (1, "2026-07-01T00:00:00", 2), (0, "2026-07-31T23:59:59.999999", 4),
          (0, "2026-08-01T00:00:00", 1), (1, "2026-08-15T12:00:00", 1), (0, "2027-01-01T00:00:00", 2))  # fmt: skip


async def test_the_writer_creates_the_partition_of_a_month_at_its_first_record(
    ledger: Settings, database: asyncpg.Connection
) -> None:
    await write(ledger, *SPREAD)
    assert await months(database) == {"2026_06": 3, "2026_07": 6, "2026_08": 2, "2027_01": 2}


async def test_a_new_month_begins_next_to_readers_writers_and_a_backup(
    ledger: Settings, database: asyncpg.Connection
) -> None:
    """pg_dump holds a read lock for hours; the batch of another shard holds a write lock."""
    await write(ledger, (0, "2026-06-01", 1))
    other = await asyncpg.connect(ledger.database_url)
    async with asyncio.timeout(20), database.transaction(), other.transaction():
        await database.execute("LOCK TABLE ledger.quarantine IN ACCESS SHARE MODE")
        await other.execute("INSERT INTO ledger.quarantine SELECT * FROM ledger.quarantine WHERE false")
        await write(ledger, (0, "2026-07-01", 1), (1, "2026-07-01", 1))
    await other.close()


async def test_two_shards_begin_a_month_at_once(ledger: Settings, database: asyncpg.Connection) -> None:
    months_of_all = [(shard, month, 5) for month in ("2026-09-01", "2026-10-01") for shard in range(4)]
    await write(ledger, *months_of_all)
    assert await months(database) == {"2026_09": 20, "2026_10": 20}


async def test_a_visible_month_waits_for_the_session_that_creates_it(
    ledger: Settings, database: asyncpg.Connection
) -> None:
    """A partition is visible a moment before all sessions are notified of it. Its creator holds the lock until they
    are.
    """
    await write(ledger, (0, "2026-06-01", 1))
    async with database.transaction():
        await database.execute("LOCK TABLE ledger.quarantine IN SHARE UPDATE EXCLUSIVE MODE")
        writing = asyncio.create_task(write(ledger, (0, "2026-06-01", 1)))
        await until("it waits", lambda: _waits_for_quarantine(database))
    await writing
    assert await months(database) == {"2026_06": 2}


async def _waits_for_quarantine(database: asyncpg.Connection) -> bool:
    waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'ledger.quarantine'::regclass AND NOT granted"
    return bool(await database.fetchval(waiting))


async def test_every_partition_refuses_changes_and_is_closed_to_services(
    ledger: Settings, database: asyncpg.Connection
) -> None:
    await write(ledger, (0, "2026-06-01", 1))
    for table in ("quarantine", "quarantine_2026_06"):
        for change in (
            f"DELETE FROM ledger.{table}",
            f"UPDATE ledger.{table} SET reason = 'x'",
            f"TRUNCATE ledger.{table}",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                await database.execute(change)
    service = await connect(ledger, ROLE, "test")
    for statement in (
        "INSERT INTO ledger.quarantine_2026_06 SELECT * FROM ledger.quarantine_2026_06",
        "DROP TABLE ledger.quarantine_2026_06",
        "ALTER TABLE ledger.quarantine DETACH PARTITION ledger.quarantine_2026_06",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await service.execute(statement)
    await service.close()


async def test_a_dropped_month_is_in_the_log_and_the_audits_still_pass(
    ledger: Settings, database: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    await write(ledger, *SPREAD)
    digest = (
        "SELECT encode(sha256(string_agg(sha256(convert_to(row_to_json(q)::text, 'UTF8')), '' ORDER BY sequence)),"
        " 'hex') FROM ledger.quarantine_2026_07 q WHERE shard = $1"
    )
    await database.execute("SET timezone = 'UTC'")
    digests = [await database.fetchval(digest, shard) for shard in (0, 1)]
    code, asked = await drop(ledger, "2026-07")
    assert code == 0
    assert asked.splitlines() == [
        "quarantine of 2026-07: 6 records, 618 bytes",
        "  shard 0: 4 records, 4 to 7",
        "  shard 1: 2 records, 1 to 2",
    ]
    assert await months(database) == {"2026_06": 3, "2026_08": 2, "2027_01": 2}
    row = await database.fetchrow("SELECT * FROM ledger.operators_log")
    assert (row["action"], row["because"]) == ("quarantine_dropped", "the disk is full")
    assert json.loads(row["details"]) == {
        "month": "2026-07",
        "rows": 6,
        "bytes": 618,
        "shards": [
            {"shard": 0, "first": 4, "last": 7, "rows": 4, "bytes": 412, "sha256": digests[0]},
            {"shard": 1, "first": 1, "last": 2, "rows": 2, "bytes": 206, "sha256": digests[1]},
        ],
        "replays": [],
    }
    for month in ("2026-06", "2026-08"):
        assert [await verify(ledger), await replay(ledger)] == [PASSED, PASSED]
        assert (await drop(ledger, month))[0] == 0
    assert [await verify(ledger), await replay(ledger)] == [PASSED, PASSED]
    await write(ledger, (1, "2026-11-01", 1))
    assert [await verify(ledger), await replay(ledger)] == [PASSED, PASSED]


async def test_a_reference_to_a_dropped_record_is_not_a_difference(
    ledger: Settings, database: asyncpg.Connection
) -> None:
    await write(ledger, (0, "2026-06-01", 1), (1, "2026-06-01", 1))
    await write(ledger, (0, "2026-07-01", 1), of=(1, 1))
    for month in ("2026-06-01Z", "2026-07-01Z"):
        await database.execute(f"SELECT ledger.make_month('quarantine_replays', '{month}')")
    await database.execute(
        "INSERT INTO ledger.quarantine_replays VALUES (1, 1, '2026-06-01Z', '2026-06-02Z'),"
        " (0, 2, '2026-07-01Z', '2026-07-02Z'), (1, 1, '2026-06-01Z', '2026-07-02Z')"
    )
    for month in ("2026-06", "2026-07"):
        assert await verify(ledger) == PASSED
        assert (await drop(ledger, month))[0] == 0
    assert await verify(ledger) == PASSED


# ---- The notes of what was sent back --------------------------------------------------------------------------------


async def send_back(connection: asyncpg.Connection, *ids: tuple[int, int]) -> int:
    """Do what the API does with its login; return how many records were handed to shard 0."""
    sent = await connection.fetch(
        "SELECT * FROM ledger.replay_quarantined($1, $2, $3, '2027-01-02Z', 10) WHERE NOT failed_too_often",
        [shard for shard, _ in ids],
        [sequence for _, sequence in ids],
        [0 for _ in ids],
    )
    return len(sent)


async def fail_again(ledger: Settings, database: asyncpg.Connection, moment: str, *firsts: tuple[int, int]) -> None:
    """Do what the writer does with replays that fail."""
    await database.execute("DELETE FROM ledger.forwarded")
    owner = secrets.token_hex(4)
    connection = await connect(ledger, ROLE, f"drawdown allocation {owner}")
    (lease,) = [each for each in await claim(connection, owner, 4) if each.shard == 0]
    batch = BatchWrite(from_datetime(at(moment)), "none", lease.spend_offset, lease.command_offset)
    batch.quarantined = [row for first in firsts for row in rows(at(moment), 1, first)]
    await append(connection, lease, batch)
    await connection.close()


async def notes(database: asyncpg.Connection) -> dict[str, list[tuple[int, int]]]:
    """Return the records that each month notes as sent back."""
    found: dict[str, list[tuple[int, int]]] = {}
    for part, *id_ in await database.fetch(
        "SELECT tableoid::regclass::text, shard, sequence FROM ledger.quarantine_replays ORDER BY 1, 2, 3"
    ):
        found.setdefault(part.removeprefix("ledger.quarantine_replays_"), []).append((id_[0], id_[1]))
    return found


async def test_dropping_a_month_also_drops_the_notes_of_its_replays(
    ledger: Settings, database: asyncpg.Connection
) -> None:
    await write(ledger, *SPREAD)
    api = await connect(ledger, "drawdown_api", "test")
    assert await send_back(api, (0, 4), (0, 5), (1, 1), (0, 8)) == 4
    with pytest.raises(CannotGoOnError, match="3 records of 2026-07 were sent back and still wait"):
        await drop(ledger, "2026-07")
    await fail_again(ledger, database, "2027-01-01T00:00:01", (0, 4))
    assert await send_back(api, (0, 4)) == 1
    assert await notes(database) == {
        "2026_07": [(0, 4), (0, 4), (0, 5), (1, 1)],
        "2026_08": [(0, 8)],
        "2027_01": [(0, 11)],
    }
    await database.execute("DELETE FROM ledger.forwarded")
    await database.execute("SET timezone = 'UTC'")
    digest = await database.fetchval(
        "SELECT encode(sha256(string_agg(sha256(convert_to(row_to_json(r)::text, 'UTF8')), '' ORDER BY sequence,"
        " replayed_at)), 'hex') FROM ledger.quarantine_replays_2026_07 r WHERE shard = 0"
    )
    assert (await drop(ledger, "2026-07"))[0] == 0
    assert await notes(database) == {"2026_08": [(0, 8)], "2027_01": [(0, 11)]}
    details = json.loads(await database.fetchval("SELECT details FROM ledger.operators_log"))
    assert [(each["shard"], each["rows"]) for each in details["replays"]] == [(0, 3), (1, 1)]
    assert details["replays"][0]["sha256"] == digest
    await fail_again(ledger, database, "2027-01-01T00:00:02", (0, 4))
    assert await send_back(api, (0, 12), (0, 11), (0, 5)) == 0, "their first record was dropped"
    assert [await verify(ledger), await replay(ledger)] == [PASSED, PASSED]
    await api.close()


async def test_a_month_cannot_be_dropped_while_its_records_are_being_replayed(
    ledger: Settings, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another replay is done between the summary and the locks that keep further ones out."""
    await write(ledger, *SPREAD)
    api = await connect(ledger, "drawdown_api", "test")
    summary = quarantine_dropping._replays

    async def then_sends_back(connection: asyncpg.Connection, month: str) -> list[dict[str, object]]:
        found = await summary(connection, month)
        assert await send_back(api, (0, 5)) == 1
        await database.execute("DELETE FROM ledger.forwarded")
        return found

    monkeypatch.setattr(quarantine_dropping, "_replays", then_sends_back)
    with pytest.raises(CannotGoOnError, match="records of 2026-07 are being sent back: try again later"):
        await drop(ledger, "2026-07")
    assert await notes(database) == {"2026_07": [(0, 5)]}
    assert (await months(database))["2026_07"] == 6
    await api.close()


async def test_a_replay_delays_neither_the_writer_nor_the_readers_of_a_new_month(
    ledger: Settings, database: asyncpg.Connection
) -> None:
    """The API's login may hold its transaction open for as long as it likes."""
    await write(ledger, (0, "2026-06-01", 2))
    api = await connect(ledger, "drawdown_api", "test")
    async with asyncio.timeout(20), database.transaction(), api.transaction():
        await database.execute("LOCK TABLE ledger.quarantine, ledger.quarantine_replays IN ACCESS SHARE MODE")
        assert await send_back(api, (0, 1)) == 1
        await write(ledger, (0, "2026-07-01", 1), (1, "2026-07-01", 1))
        assert await database.fetchval("SELECT count(*) FROM ledger.quarantine_replays") == 0
    await api.close()


async def test_the_notes_of_every_month_refuse_changes_and_are_audited(
    ledger: Settings, database: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    await write(ledger, (0, "2026-06-01", 2))
    assert await send_back(database, (0, 1)) == 1
    await database.execute("DELETE FROM ledger.forwarded")
    for table in ("quarantine_replays", "quarantine_replays_2026_06"):
        for change in (f"DELETE FROM ledger.{table}", f"TRUNCATE ledger.{table}"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                await database.execute(change)
    await database.execute("ALTER TABLE ledger.quarantine_replays_2026_06 DISABLE TRIGGER append_only")
    told = "ledger.quarantine_replays_2026_06: the append-only trigger is not enabled ALWAYS"
    assert await found_by_both(ledger, capsys) == [told] * 2


# ---- Gaps that the log does not explain -----------------------------------------------------------------------------


_RECORDS = "DELETE FROM ledger.quarantine WHERE shard = "
_AGAIN = (
    'INSERT INTO ledger.quarantine SELECT shard, {}, reason, detail, topic, partition, "offset", key, raw, headers,'
    " business_center_id, '2026-06-30T23:59:59.5Z' FROM ledger.quarantine WHERE shard = 0 AND sequence = 3"
)
UNTOLD = {
    f"{_RECORDS} 0 AND sequence = 3": "shard 0: the quarantined record 3 is missing",
    f"{_RECORDS} 0 AND sequence = 8": "shard 0: the quarantined record 8 is missing",
    f"{_RECORDS} 0 AND sequence > 9": "shard 0: the quarantined record 10 is missing",
    f"{_RECORDS} 1": "shard 1: the quarantined record 3 is missing",
    "DROP TABLE ledger.quarantine_2026_06": "shard 0: the quarantined record 1 is missing",
    "DELETE FROM ledger.operators_log": "shard 0: the quarantined record 4 is missing",
    _AGAIN.format(5): "shard 0: the operators' log says that the quarantined record 5 was dropped, but it is there",
    _AGAIN.format(11): "shard 0: the quarantine ends at 11, but the lease says 10",
}


@pytest.mark.parametrize("statement", UNTOLD)
async def test_a_gap_that_the_log_does_not_explain_is_found(
    ledger: Settings, database: asyncpg.Connection, capsys: pytest.CaptureFixture[str], statement: str
) -> None:
    await write(ledger, *SPREAD)
    await drop(ledger, "2026-07")
    for table in await database.fetch("SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = 'append_only'"):
        await database.execute(f"ALTER TABLE {table[0]} DISABLE TRIGGER append_only")
    await database.execute(statement)
    for table in await database.fetch("SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = 'append_only'"):
        await database.execute(f"ALTER TABLE {table[0]} ENABLE ALWAYS TRIGGER append_only")
    assert await found_by_both(ledger, capsys) == [UNTOLD[statement]] * 2


async def test_months_that_must_stay_cannot_be_dropped(ledger: Settings, database: asyncpg.Connection) -> None:
    await write(ledger, *SPREAD)
    with pytest.raises(BadSettingError, match="is not over"):
        await drop(ledger, f"{datetime.now(UTC):%Y-%m}")
    with pytest.raises(BadSettingError, match="is not over"):
        await drop(ledger, "2027-01")
    for month in ("2026-7", "2026-13", "07-2026", "2026-07; DROP TABLE ledger.entries"):
        with pytest.raises(BadSettingError, match="is written like 2026-08"):
            await drop(ledger, month)
    with pytest.raises(CannotGoOnError, match="there is no quarantine of 2026-05, only of: 2026-06, 2026-07"):
        await drop(ledger, "2026-05")
    with pytest.raises(BadSettingError, match="give the reason"):
        await drop_month(ledger, "2026-07", " ", lambda _: True)
    assert (await drop(ledger, "2026-07", answer=False))[0] == 1
    await database.execute(
        'INSERT INTO ledger.forwarded (shard, topic, partition, "offset", replay_shard, replay_sequence)'
        " VALUES (2, 'spend.events', 0, 1, 0, 5)"
    )
    with pytest.raises(CannotGoOnError, match="1 records of 2026-07 were sent back and still wait"):
        await drop(ledger, "2026-07")
    await database.execute("DELETE FROM ledger.forwarded")
    other = await asyncpg.connect(ledger.database_url)
    async with other.transaction():
        await other.execute("SELECT count(*) FROM ledger.quarantine")
        with pytest.raises(CannotGoOnError, match="because quarantine is being read"):
            await drop(ledger, "2026-07")
    await other.close()
    assert await months(database) == {"2026_06": 3, "2026_07": 6, "2026_08": 2, "2027_01": 2}
    assert await database.fetchval("SELECT count(*) FROM ledger.operators_log") == 0


async def test_the_number_of_months_is_bounded(ledger: Settings, database: asyncpg.Connection) -> None:
    begin = (
        "SELECT ledger.make_quarantine_part(timestamptz '1990-01-01Z' + n * interval '1 month')"
        " FROM generate_series(1, $1) AS n"
    )
    await database.execute(
        "DROP TABLE "
        + (
            await database.fetchval(
                "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'ledger.quarantine'::regclass"
            )
        )
    )
    service = await connect(ledger, ROLE, "test")
    await service.execute(begin, 3)
    await database.execute(
        "UPDATE pg_proc SET prosrc = replace(prosrc, '>= 600', '>= 4')"
        " WHERE oid = 'ledger.make_quarantine_part'::regproc"
    )
    await service.execute(begin, 4)
    with pytest.raises(asyncpg.RaiseError, match="drop some before"):
        await service.execute(begin, 5)
    await service.close()


async def test_the_current_month_of_a_shard_is_never_refused(ledger: Settings, database: asyncpg.Connection) -> None:
    """Neither other months that were created before, nor a clock that is years ahead, prevent it."""
    await database.execute(
        "UPDATE pg_proc SET prosrc = replace(prosrc, '>= 600', '>= 1')"
        " WHERE oid = 'ledger.make_quarantine_part'::regproc"
    )
    service = await connect(ledger, ROLE, "test")
    with pytest.raises(asyncpg.RaiseError, match="drop some before"):
        await service.execute("SELECT ledger.make_quarantine_part('1990-01-01Z')")
    with pytest.raises(asyncpg.CheckViolationError, match="quarantine gets no partition for 2500-"):
        await service.execute("SELECT ledger.make_quarantine_part('2500-01-01Z')")
    await service.close()
    await write(ledger, (0, "2500-01-31T12:00:00", 2))
    assert await months(database) == {"2500_01": 2}


async def test_the_command_drops_a_month(ledger: Settings, database: asyncpg.Connection) -> None:
    await write(ledger, *SPREAD)
    done = await run_to_its_end("quarantine drop 2026-07 --yes --because full", ledger)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "dropped: 6 records of 2026-07; see `drawdown offsets log`"
    refused = await run_to_its_end("quarantine drop 2026-07 --yes --because full", ledger)
    assert refused.returncode == 1
    assert "there is no quarantine of 2026-07" in refused.stderr
    assert "Traceback" not in refused.stderr


async def test_no_service_can_drop_a_month(ledger: Settings, database: asyncpg.Connection) -> None:
    await write(ledger, *SPREAD)
    await database.execute("CREATE ROLE dropping LOGIN PASSWORD 'x' IN ROLE drawdown_allocation")
    try:
        url = ledger.database_url.replace("://", "://dropping:x@", 1) if "@" not in ledger.database_url else None
        head, _, tail = ledger.database_url.partition("@")
        scheme = head.partition("://")[0]
        as_service = Settings(database_url=url or f"{scheme}://dropping:x@{tail}")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await drop(as_service, "2026-07")
    finally:
        await database.execute("DROP ROLE dropping")
    assert (await months(database))["2026_07"] == 6
