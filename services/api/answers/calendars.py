"""Finds the calendars of stored time zones.

They are those of the installed release. A release may lack a name that an older one had: then accounts keep the days of
the older release, which the ledger has recorded.
"""

from collections.abc import Iterable

import asyncpg

from services.api.door.errors import ApiError
from shared.contracts.zones import is_zone, zone
from shared.rules.calendar import Zone

# The zones that the installed release lacks, by name, once they were read from the ledger. The bytes of a recorded zone
# never change.
_recorded: dict[str, Zone] = {}


async def learn_zones(connection: asyncpg.Connection, zone_names: Iterable[str]) -> None:
    """Read those of these zones from the ledger that the installed release lacks, for `calendar` and `has_calendar`."""
    unknown = {name for name in zone_names if not has_calendar(name)}
    if not unknown:
        return
    rows = await connection.fetch(
        "SELECT DISTINCT ON (name) name, data FROM ledger.time_zones WHERE name = ANY($1) ORDER BY name, release DESC",
        sorted(unknown),
    )
    for name, data in rows:
        try:
            _recorded[name] = Zone(name, data)
        except ValueError:  # The writer's login can store any bytes. `audit verify` names them.
            continue


def has_calendar(zone_name: str) -> bool:
    """Return whether the days of a stored time zone are known, after `learn_zones`."""
    return is_zone(zone_name) or zone_name in _recorded


def calendar(zone_name: str) -> Zone:
    """Return the days of a stored time zone, after `learn_zones`. Raise ApiError (409) if they are unknown."""
    if is_zone(zone_name):
        return zone(zone_name)
    found = _recorded.get(zone_name)
    if found is None:
        raise unknown_zone()
    return found


def unknown_zone() -> ApiError:
    """Return a 409: the days that the answer needs are unknown."""
    return ApiError(409, "conflict", "its stored time zone is unknown to this release, so its days are unknown")
