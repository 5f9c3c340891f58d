"""Time zones for tests: those of the installed package, and invented releases."""

from shared.contracts.zones import installed_zones
from shared.rules.calendar import Zone, Zones

INSTALLED = installed_zones()


def zone(name: str) -> Zone:
    """Return a new zone object, which no other test changes."""
    return Zone(name, INSTALLED.table[name])


def release(name: str, **moved: str) -> Zones:
    """Return a release in which some zones have the times of others: `release("2030a", UTC="Asia/Tokyo")`.

    `__` in an argument's name stands for a slash.
    """
    table = dict(INSTALLED.table)
    return Zones(name, table | {mine.replace("__", "/"): table[other] for mine, other in moved.items()})
