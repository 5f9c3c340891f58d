"""JSON as the contract accepts it: RFC 8259, nested at most 128 levels deep, numbers of at most 4,300 digits.

pydantic's parser accepts more: `NaN` and `Infinity`, deeper nesting, longer fractions; and a model does not check the
fields that it ignores. So the bytes are checked as well. A quick test skips most of them.
"""

import re
from itertools import accumulate
from typing import Any, Final

from pydantic_core import from_json

MOST_LEVELS: Final = 128
MOST_DIGITS: Final = 4300

# The parser's messages for half of a surrogate pair: a first half without its second, a second without its first.
_LONE_SURROGATE = re.compile("unexpected end of hex escape|lone leading surrogate in hex escape")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_NUMBER = re.compile(rb"[0-9][0-9.eE+-]*")
_DIGIT = re.compile(rb"[0-9]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# Keeps the characters of numbers, and turns all others into blanks.
_NUMBERS = bytes(byte if byte in b"0123456789.eE+-" else ord(" ") for byte in range(256))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class MalformedError(ValueError):
    """The bytes are not JSON. The text is a sentence that says why."""


def read(text: bytes) -> Any:
    """Parse JSON. Raises MalformedError if the bytes are not JSON of the contract."""
    try:
        value = from_json(text)
    except ValueError as error:
        raise MalformedError(f"Invalid JSON: {worded(str(error))}") from None
    refused = refusal(text)
    if refused is not None:
        raise MalformedError(f"Invalid JSON: {refused}")
    return value


def worded(error: str) -> str:
    """Return the parser's message, with plainer words for a lone half of a surrogate pair."""
    return _LONE_SURROGATE.sub("a lone surrogate is not a character,", error)


def refusal(text: bytes) -> str | None:
    """Return why the contract refuses a text that pydantic's parser accepts; None if it accepts it."""
    if not _needs_a_look(text):
        return None
    bare = _STRING.sub(b"", text)
    if b"N" in bare or b"I" in bare:
        return "NaN and Infinity are not JSON"
    if _levels(bare) > MOST_LEVELS:
        return f"it is nested deeper than {MOST_LEVELS} levels"
    if _most_digits(bare) > MOST_DIGITS:
        return f"a number has more than {MOST_DIGITS} digits"
    return None


def _needs_a_look(text: bytes) -> bool:
    if b"NaN" in text or b"Infinity" in text or len(text) > MOST_DIGITS:
        return True
    return len(text) > 2 * MOST_LEVELS and text.count(b"[") + text.count(b"{") > MOST_LEVELS


def _levels(bare: bytes) -> int:
    brackets = bare.translate(None, _NO_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0)


def _most_digits(bare: bytes) -> int:
    if max(map(len, bare.translate(_NUMBERS).split()), default=0) <= MOST_DIGITS:
        return 0  # No number is that long. Checking thousands of them one by one would take four times as long.
    long = (number for number in _NUMBER.findall(bare) if len(number) > MOST_DIGITS)
    return max((len(_DIGIT.findall(number)) for number in long), default=0)
