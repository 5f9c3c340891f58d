"""Finds the calendars of stored time zones. A read model may name a zone that this release does not know."""

from services.api.door.errors import ApiError
from shared.contracts.zones import is_zone, zone
from shared.rules.calendar import Zone


def calendar(zone_name: str) -> Zone:
    """Return the days of a stored time zone. Raise ApiError (409) if this release does not know it."""
    if not is_zone(zone_name):
        raise unknown_zone()
    return zone(zone_name)


def unknown_zone() -> ApiError:
    """Return a 409: the days of what was asked for cannot be told."""
    return ApiError(409, "conflict", "its stored time zone is unknown to this release, so its days cannot be told")
