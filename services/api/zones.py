"""The names of time zones, as OpenAPI lists them: those of the IANA database in the pinned release, links included."""

from functools import lru_cache
from importlib.resources import files

# What the release has beside zones: what a machine without a zone would use.
_NO_ZONES = frozenset({"Factory"})


@lru_cache(maxsize=1)
def zone_names() -> tuple[str, ...]:
    """All names, sorted."""
    names = files("tzdata").joinpath("zones").read_text(encoding="ascii").split()
    return tuple(sorted(set(names) - _NO_ZONES))
