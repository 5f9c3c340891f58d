"""The audits as commands, while the system works."""

import asyncio
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg

from tests.acceptance.front_door import FrontDoor
from tests.integration.working import do
from tests.model.workload import Workload
from tests.servers import RunningSystem


async def audit(system: RunningSystem, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run `drawdown audit …` as a process; return its exit code, its report and its stderr."""
    environment = {
        **os.environ,
        "DRAWDOWN_DATABASE_URL": system.database_url,
        "DRAWDOWN_SHARDS": str(system.settings.shards),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "drawdown", "audit", *arguments, "--json"),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    code = process.returncode
    assert code is not None
    return code, json.loads(out or "{}"), err.decode()


async def work_on(door: FrontDoor, workload: Workload) -> None:
    """Send everything that can happen, until cancelled."""
    while True:
        await do(door, workload.next(door.now_us()))


async def test_a_live_system_passes_the_audit_while_it_works_and_afterwards(
    system: RunningSystem, tmp_path: Path
) -> None:
    async with FrontDoor(system) as door:
        workload = Workload(21, prefix="audit-")
        for work in workload.opening(door.now_us()):
            await door.command(work.message)
        working = asyncio.create_task(work_on(door, workload))
        noted = tmp_path / "noted.json"
        reports = []
        for number in range(3):
            code, report, errors = await audit(system, "replay", *(["--since", str(noted)] if number else []))
            assert code == 0, report.get("difference") or errors
            noted.write_text(json.dumps(report))
            reports.append(report)
        assert not working.done()
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working
        await door.fence()
    assert reports[0]["entries"] < reports[1]["entries"] < reports[2]["entries"]
    assert reports[2]["checked"]["noted_roots"] > 0
    assert reports[2]["checked"]["commands_refused"] > 0
    code, verified, errors = await audit(system, "verify", "--since", str(noted))
    assert code == 0, verified.get("difference") or errors
    code, exported, errors = await audit(system, "export", "--out", str(tmp_path / "out"), "--format", "csv.gz")
    assert code == 0, errors
    assert exported["entries"] >= verified["entries"] >= reports[2]["entries"] > 100


async def test_published_signals_are_compared_too(system: RunningSystem) -> None:
    """The followers' tests use a database without signals; this one has some."""
    connection = await asyncpg.connect(system.database_url)
    try:
        kept = await connection.fetchrow("SELECT * FROM signals.latest ORDER BY position LIMIT 1")
        assert kept is not None
        where = "shard = $1 AND ad_account_id = $2 AND campaign_id = $3"
        key = (kept["shard"], kept["ad_account_id"], kept["campaign_id"])
        await connection.execute(f"UPDATE signals.latest SET position = position - 1 WHERE {where}", *key)
        code, report, _ = await audit(system, "replay")
        await connection.execute(f"UPDATE signals.latest SET position = $4 WHERE {where}", *key, kept["position"])
    finally:
        await connection.close()
    assert code == 1
    shard, account, campaign = key
    said = f"signals.latest shard {shard}, ad_account_id {account}, campaign_id {campaign}, as of shard {shard}, "
    assert report["difference"].startswith(said)


async def test_the_role_of_the_auditor_cannot_write(system: RunningSystem) -> None:
    connection = await asyncpg.connect(system.database_url)
    try:
        rights = await connection.fetch(
            """
            SELECT c.oid::regclass::text AS name, privilege FROM pg_class c
            CROSS JOIN unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS privilege
            WHERE c.relnamespace::regnamespace::text IN ('ledger', 'balance', 'incentives', 'signals')
                AND c.relkind IN ('r', 'p') AND has_table_privilege('drawdown_auditor', c.oid, privilege)
            """
        )
    finally:
        await connection.close()
    assert rights == []


async def test_an_invalid_database_url_ends_with_exit_code_2(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "drawdown", "audit", "verify"),
        env={**os.environ, "DRAWDOWN_DATABASE_URL": "mysql://nowhere"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, out, len(err.splitlines())) == (2, b"", 1)
