"""Patterns of days, times and rates that state the whole rule, so that OpenAPI can state it too.

A text that matches is accepted, any other is refused. The patterns work in JSON Schema as well as in
Python: no flags, no look-around.
"""

from typing import Final

_THIRTY_ONE: Final = "(0[1-9]|[12][0-9]|3[01])"
_LONG_MONTHS: Final = f"(0[13578]|1[02])-{_THIRTY_ONE}"
_SHORT_MONTHS: Final = "(0[469]|11)-(0[1-9]|[12][0-9]|30)"
_FEBRUARY: Final = "02-(0[1-9]|1[0-9]|2[0-8])"
_LEAP: Final = "(0[48]|[2468][048]|[13579][26])"


def _date(years: str, leap_years: str) -> str:
    """Return the pattern of the days of these years in the Gregorian calendar."""
    return f"(({years})-({_LONG_MONTHS}|{_SHORT_MONTHS}|{_FEBRUARY})|({leap_years})-02-29)"


# A day from 1970 to 2999.
DAY: Final = f"^{_date('19[7-9][0-9]|2[0-9]{3}', f'19([79][26]|8[048])|2[0-9]{_LEAP}|2[048]00')}$"

# From 0002 to 9998.
_YEARS: Final = "000[2-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-8][0-9]{3}|9[0-8][0-9]{2}|99[0-8][0-9]|999[0-8]"
_YEAR_1: Final = f"0001-(01-(0[2-9]|[12][0-9]|3[01])|(0[3578]|1[02])-{_THIRTY_ONE}|{_SHORT_MONTHS}|{_FEBRUARY})"
_YEAR_9999: Final = f"9999-(12-(0[1-9]|[12][0-9]|30)|(0[13578]|10)-{_THIRTY_ONE}|{_SHORT_MONTHS}|{_FEBRUARY})"
_DATES: Final = f"({_date(_YEARS, f'[0-9]{{2}}{_LEAP}|{_LEAP}00')}|{_YEAR_1}|{_YEAR_9999})"
_CLOCK: Final = "([01][0-9]|2[0-3]):[0-5][0-9]"
_MORNING: Final = "(0[0-9]|1[01]):[0-5][0-9]"
_AFTERNOON: Final = "(1[2-9]|2[0-3]):[0-5][0-9]"
_SECOND: Final = "([0-5][0-9]|60)"
# As many digits as `LONGEST_TIME` has room for.
_IN_UTC: Final = "(\\.[0-9]{1,43})?[Zz]"
_FRACTION: Final = "(\\.[0-9]{1,38})?"
# On the first and the last day of the calendar an offset may lead out of it. The patterns accept only offsets that
# never do, and no leap second on the last day.
_FIRST_DAY: Final = (
    f"0001-01-01[Tt]({_CLOCK}:{_SECOND}({_IN_UTC}|{_FRACTION}(-{_CLOCK}|\\+00:00))"
    f"|{_AFTERNOON}:{_SECOND}{_FRACTION}\\+{_MORNING})"
)
_LAST_DAY: Final = (
    f"9999-12-31[Tt]({_CLOCK}:[0-5][0-9]({_IN_UTC}|{_FRACTION}(\\+{_CLOCK}|-00:00))"
    f"|{_MORNING}:[0-5][0-9]{_FRACTION}-{_MORNING})"
)
# RFC 3339, section 5.6, and the calendar. With `TIME_PATTERN` alone a time could be one that no calendar has.
TIME: Final = f"^({_DATES}[Tt]{_CLOCK}:{_SECOND}({_IN_UTC}|{_FRACTION}[+-]{_CLOCK})|{_FIRST_DAY}|{_LAST_DAY})$"
# A decimal fraction above 0, at most 1, with at most six places.
_BELOW_ONE: Final = "|".join(f"{'0' * zeros}[1-9][0-9]{{0,{5 - zeros}}}" for zeros in range(6))
RATE: Final = f"^(1(\\.0{{1,6}})?|0\\.({_BELOW_ONE}))$"
