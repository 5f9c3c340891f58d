"""The time zones of the pinned `tzdata` package, the only ones that every host uses.

A machine's own zone files are never read. Names whose meaning depends on the machine (`localtime`, `posixrules`,
`Factory`, `posix/…`, `right/…`) are not zones; links such as `Europe/Kiev` are.
"""

from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from importlib.resources import files

import tzdata

from shared.rules.calendar import Zone, Zones

# The zone of a machine that has not been configured.
_NO_PLACE = "Factory"


class _Package(Mapping[str, bytes]):
    """The package's zones, by name. Each file is read when it is first used."""

    def __init__(self) -> None:
        self._root = files(tzdata)
        self._names = frozenset(self._root.joinpath("zones").read_text("ascii").split()) - {_NO_PLACE}
        self._read: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> bytes:
        found = self._read.get(name)
        if found is None:
            if name not in self._names:
                raise KeyError(name)
            found = self._read[name] = self._root.joinpath("zoneinfo", *name.split("/")).read_bytes()
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)


@cache
def installed_zones() -> Zones:
    """Return the zones of the installed package, with the name of its release, such as `2026b`."""
    return Zones(tzdata.IANA_VERSION, _Package())


def is_zone(name: str) -> bool:
    """Return whether the installed release of the IANA time zone database has this name."""
    return name in installed_zones().table


@lru_cache(maxsize=1024)
def zone(name: str) -> Zone:
    """Return the zone with that name in the installed release. Raises KeyError for an unknown name."""
    return Zone(name, installed_zones().table[name])
