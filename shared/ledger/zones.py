"""The time zones that the ledger holds. They decide the days of the past, whatever is installed today."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import asyncpg
import structlog

from shared.contracts.zones import installed_zones
from shared.rules.calendar import Zones
from shared.runtime.errors import CannotGoOnError

log = structlog.get_logger()

# The release in batches that were written before batches named their release.
UNRECORDED = "unrecorded"
# Of zones, in the memory of a process that loads a shard: sixty releases with all their zones.
MOST_BYTES = 64 * 2**20

_RECORD = """
    INSERT INTO ledger.time_zones (release, name, data)
    SELECT $1, name, data FROM unnest($2::text[], $3::bytea[]) AS used (name, data) ORDER BY name
    ON CONFLICT DO NOTHING
"""
# A batch beyond the last position was forged.
_WANTED = """
    release = ANY($4) OR release IN (
        SELECT zones_release FROM ledger.batches WHERE shard = $1 AND last_position >= $2 AND last_position <= $3)
"""
_RECORDED = f"SELECT release, name, data FROM ledger.time_zones WHERE {_WANTED}"
# What they take in memory: a name and the objects around it take some hundred bytes, even if a zone has none.
_TAKEN = "coalesce(sum(octet_length(data) + octet_length(name) + 300), 0)"
_BYTES = f"SELECT {_TAKEN} FROM ledger.time_zones WHERE {_WANTED}"
_OTHERS = """
    SELECT name FROM ledger.time_zones JOIN unnest($2::text[], $3::bytea[]) AS used (name, its_data) USING (name)
    WHERE release = $1 AND data <> its_data
"""


class ZonesDifferError(Exception):
    """Another process has recorded other bytes for the same zone and release. The shard must be loaded again."""


async def recorded_zones(
    connection: asyncpg.Connection, shard: int, position: int, last: int, others: Iterable[str] = ()
) -> dict[str, Zones]:
    """Return the recorded zones of each release that batches of the shard name, and of `others`.

    The installed release is included. For batches that do not name their release, zones that are not recorded come from
    the installed package, until a shard is loaded once.

    Args:
        connection: a connection to the ledger.
        shard: the shard.
        position: the position from which batches count.
        last: the last position of the shard.
        others: further releases.

    Raises:
        CannotGoOnError: all of them have more than `MOST_BYTES`, which only a forged ledger has.

    """
    tables: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
    wanted = (shard, position, last, [installed_zones().release, UNRECORDED, *others])
    size = await connection.fetchval(_BYTES, *wanted)
    if size > MOST_BYTES:
        raise CannotGoOnError(
            f"shard {shard}: the recorded time zones that it needs take {size:,} bytes, more than {MOST_BYTES:,}:"
            " no service writes this many; 'drawdown audit verify' names what was forged"
        )
    for release, name, data in await connection.fetch(_RECORDED, *wanted):
        tables[release][name] = data
    kept = {release: Zones(release, table) for release, table in tables.items()}
    kept[UNRECORDED] = _on_top_of_installed(UNRECORDED, tables[UNRECORDED])
    return kept


def zones_to_write_with(recorded: Mapping[str, Zones]) -> Zones:
    """Return the zones for the next batch: those of the installed release, but recorded ones take precedence."""
    installed = installed_zones()
    kept = recorded.get(installed.release)
    if kept is None:
        return installed
    for name, data in kept.table.items():
        if installed.table.get(name) != data:
            log.warning(
                "the ledger holds another table for a time zone of this release: the ledger's is used",
                release=installed.release,
                zone=name,
            )
    return _on_top_of_installed(installed.release, kept.table)


async def record_zones(connection: asyncpg.Connection, release: str, used: Iterable[tuple[str, bytes]]) -> None:
    """Record the zones of a release that are not recorded yet: `used` holds names and TZif files.

    Raise ZonesDifferError if the ledger holds other bytes for one of them.
    """
    names, data = zip(*used, strict=True)
    await connection.execute(_RECORD, release, names, data)
    others = await connection.fetchval(_OTHERS, release, names, data)
    if others is not None:
        raise ZonesDifferError(f"the ledger holds another table for {others} in the time-zone release {release}")


def _on_top_of_installed(release: str, recorded: Mapping[str, bytes]) -> Zones:
    return Zones(release, {**installed_zones().table, **recorded})
