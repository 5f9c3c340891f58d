"""`audit export`: others can check the files without our software, and a forged file does not deceive them."""

import csv
import gzip
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from drawdown.deployment.migrate import migrate
from services.auditor.cli import export, verify
from services.auditor.exporting import Format, Selection
from shared.runtime.settings import Settings
from tests.integration.audit_ledger import write_random_ledger
from tests.servers import Postgres, fresh_database

DOCUMENT = Path(__file__).parents[2] / "docs" / "auditing.md"


@pytest.fixture(scope="module")
async def settings(postgres: Postgres) -> AsyncIterator[Settings]:
    """Return the settings of a database with a ledger."""
    async with fresh_database(postgres.url) as url:
        await migrate(Settings(database_url=url, shards=4))
        await write_random_ledger(url, seed=8, steps=90)
        yield Settings(database_url=url)


@pytest.fixture
def snippet(tmp_path: Path) -> Path:
    """Return the program in the documentation, exactly as it stands there."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    file = tmp_path / "check.py"
    file.write_text(code, "utf-8")
    return file


def run(snippet: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(snippet), str(folder)], capture_output=True, text=True, check=False
    )


def manifest(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return read


@pytest.mark.parametrize("ending", ["ndjson", "ndjson.gz"])
async def test_the_program_in_the_documentation_recomputes_every_root(
    settings: Settings, snippet: Path, tmp_path: Path, ending: Format
) -> None:
    assert await export(settings, Selection(tmp_path / "out", ending)) == 0
    ran = run(snippet, tmp_path / "out")
    assert ran.returncode == 0, ran.stderr
    rows = [shard["entries"]["rows"] for shard in manifest(tmp_path / "out")["shards"]]
    said = [f"shard {shard}: {count} entries, every root is right" for shard, count in enumerate(rows)]
    assert ran.stdout.splitlines() == said
    connection = await asyncpg.connect(settings.database_url)
    assert sum(rows) == await connection.fetchval("SELECT count(*) FROM ledger.entries") > 0
    await connection.close()


async def test_the_program_in_the_documentation_finds_an_edited_byte_and_a_lost_entry(
    settings: Settings, snippet: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert await export(settings, Selection(out, shard=0)) == 0
    file = out / "entries-0.ndjson"
    kept = file.read_text().splitlines(keepends=True)
    entry = json.loads(kept[9])
    entry["encoded"] = entry["encoded"][:-1] + ("0" if entry["encoded"][-1] != "0" else "1")
    file.write_text("".join([*kept[:9], json.dumps(entry) + "\n", *kept[10:]]))
    assert "another root at" in run(snippet, out).stderr
    file.write_text("".join([*kept[:9], *kept[10:]]))
    assert "position 10" in run(snippet, out).stderr
    file.write_text("".join(kept[:-1]))
    assert "entries are missing" in run(snippet, out).stderr


async def test_a_part_of_a_shard_can_be_checked(settings: Settings, snippet: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert await export(settings, Selection(out, shard=0, first=38, last=121)) == 0
    (shard,) = manifest(out)["shards"]
    connection = await asyncpg.connect(settings.database_url)
    end = await connection.fetchval(
        "SELECT last_position FROM ledger.batches WHERE shard = 0 AND 121 BETWEEN first_position AND last_position"
    )
    await connection.close()
    assert (shard["first_position"], shard["last_position"], shard["entries"]["rows"]) == (38, end, end - 37)
    assert len(shard["frontier"]) == (37).bit_count()
    assert shard["batches"]["rows"] > 1
    assert run(snippet, out).returncode == 0
    frontier = [shard["frontier"][1], shard["frontier"][0], shard["frontier"][2]]
    (out / "manifest.json").write_text(json.dumps({"shards": [{**shard, "frontier": frontier}]}))
    assert "another root at" in run(snippet, out).stderr


async def test_the_manifest_names_each_file_with_its_hash_and_rows(settings: Settings, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert await export(settings, Selection(out, "csv.gz")) == 0
    files = [shard[what] for shard in manifest(out)["shards"] for what in ("entries", "batches")]
    assert {file["file"] for file in files} | {"manifest.json"} == {path.name for path in out.iterdir()}
    for file in files:
        assert hashlib.sha256((out / file["file"]).read_bytes()).hexdigest() == file["sha256"]
        with gzip.open(out / file["file"], "rt", newline="") as text:
            assert len(list(csv.DictReader(text))) == file["rows"]


async def test_both_formats_hold_the_same_entries(settings: Settings, tmp_path: Path) -> None:
    for ending in ("ndjson", "csv"):
        assert await export(settings, Selection(tmp_path / ending, ending)) == 0
    lines = [json.loads(line) for line in (tmp_path / "ndjson" / "entries-0.ndjson").read_text().splitlines()]
    with (tmp_path / "csv" / "entries-0.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(lines) > 100
    for row, line in zip(rows, lines, strict=True):
        assert [*row] == [*line]
        for name, value in line.items():
            expected = json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value
            assert row[name] == ("" if expected is None else str(expected))


async def test_a_manifest_holds_roots_that_a_later_audit_must_find(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert await export(settings, Selection(out, last=100)) == 0
    assert await verify(settings, since=out / "manifest.json") == 0
    edited = manifest(out)
    edited["roots"][0]["root"] = "00" * 32
    (out / "manifest.json").write_text(json.dumps(edited))
    assert await verify(settings, since=out / "manifest.json") == 1
    assert "the root noted earlier is 0000" in capsys.readouterr().out


async def test_an_export_error_is_one_line(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "something").touch()
    for selection in (Selection(tmp_path), Selection(tmp_path / "out", shard=7)):
        assert await export(settings, selection) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
