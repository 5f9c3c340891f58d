"""Time zones for tests: those of the installed package, and releases made up from them."""

from shared.contracts.zones import installed_zones
from shared.rules.calendar import Zone, Zones

INSTALLED = installed_zones()


def zone(name: str) -> Zone:
    """A zone of its own, whose time nobody else moves."""
    return Zone(name, INSTALLED.table[name])


def release(name: str, **moved: str) -> Zones:
    """A release in which the zones named have the days of others: `release("2030a", UTC="Asia/Tokyo")`.

    `__` stands for the slash in a name.
    """
    table = dict(INSTALLED.table)
    return Zones(name, table | {mine.replace("__", "/"): table[other] for mine, other in moved.items()})
