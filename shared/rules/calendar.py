"""Days and months of a time zone.

A day begins at the first instant that carries its date in the zone (domain page, section 4.4), and lasts until
the next day begins. So days of 23 and 25 hours, and zones that change at midnight, need no special case.
Days are proleptic ordinals (`datetime.date.toordinal`), instants are microseconds since the Unix epoch.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import lru_cache
from io import BytesIO
from typing import Final
from zoneinfo import ZoneInfo

from shared.rules.instants import EPOCH, from_datetime, to_datetime

_SECOND_US = 1_000_000
_DAY_US = 86_400 * _SECOND_US
_EPOCH_DAY = EPOCH.toordinal()
_WIDEST_OFFSET_US = 26 * 3600 * _SECOND_US


@dataclass(frozen=True, slots=True)
class Zones:
    """The time zones of one release of the IANA database: the TZif bytes of each by name.

    The rules take them as an argument, because a ledger cannot record the files of a machine.
    """

    release: str
    table: Mapping[str, bytes] = field(default_factory=dict, compare=False, repr=False)


NO_ZONES: Final = Zones("")


class Zone:
    """The days of one IANA time zone, by the TZif bytes (RFC 9636) of some release.

    `today` is the day that the last call of `advance` reached. All users of one object share its time.
    """

    __slots__ = ("_day", "_from", "_info", "_starts", "_to", "_tomorrow", "data", "name", "today")

    def __init__(self, name: str, data: bytes) -> None:
        """Raise ValueError if the bytes are not a time zone."""
        self.name = name
        self.today = 0
        self.use(data)

    def use(self, data: bytes) -> None:
        """Use the days of another release from now on. The caller must call `advance` next."""
        self.data = data
        self._info = ZoneInfo.from_file(BytesIO(data), self.name)
        self._starts: dict[int, int] = {}
        self._from = self._to = self._day = 0
        self._tomorrow = -(2**63)

    def advance(self, instant_us: int) -> None:
        """Move `today` to the day of this instant (µs). Time never goes back, except after `use`."""
        if instant_us >= self._tomorrow:
            self.today = self.day(instant_us)
            self._tomorrow = self.start(self.today + 1)

    def day(self, instant_us: int) -> int:
        """Return the day that an instant (µs) belongs to."""
        if not self._from <= instant_us < self._to:
            self._day = self._find_day(instant_us)
            self._from, self._to = self.start(self._day), self.start(self._day + 1)
        return self._day

    def start(self, day: int) -> int:
        """Return the first instant of a day, in µs."""
        found = self._starts.get(day)
        if found is None:
            if len(self._starts) > 1000:
                self._starts.clear()
            found = self._starts[day] = self._find_start(day)
        return found

    def _find_day(self, instant_us: int) -> int:
        guess = _EPOCH_DAY + instant_us // _DAY_US
        days = range(guess - 1, guess + 3)
        return days[bisect_right(days, instant_us, key=self.start) - 1]

    def _find_start(self, day: int) -> int:
        midnight = datetime.combine(date.fromordinal(day), datetime.min.time(), self._info)
        candidate = from_datetime(midnight)
        if self._local(candidate) == midnight.replace(tzinfo=None):
            return candidate
        return self._first_instant_on_or_after(day, candidate)

    def _first_instant_on_or_after(self, day: int, near_us: int) -> int:
        """Return the start of a day whose midnight does not exist because the clock jumped over it.

        The search goes to the second, because offsets change on whole seconds.
        """
        low, high = near_us - _WIDEST_OFFSET_US, near_us + _WIDEST_OFFSET_US
        while high - low > _SECOND_US:
            middle = (low + high) // 2 // _SECOND_US * _SECOND_US
            low, high = (middle, high) if self._local(middle).toordinal() < day else (low, middle)
        return high

    def _local(self, instant_us: int) -> datetime:
        return to_datetime(instant_us).astimezone(self._info).replace(tzinfo=None)


@lru_cache(maxsize=4096)
def month_start(day: int) -> int:
    """Return the first day of the day's month."""
    return date.fromordinal(day).replace(day=1).toordinal()


def date_text(day: int) -> str:
    """Return a day as `YYYY-MM-DD`."""
    return date.fromordinal(day).isoformat()
