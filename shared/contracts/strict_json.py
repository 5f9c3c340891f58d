"""JSON as the contract takes it: RFC 8259, nested at most 128 levels deep, numbers of at most 4,300 digits.

pydantic's parser takes more: `NaN` and `Infinity`, deeper nesting, longer fractions; and a model says nothing of the
fields that it ignores. So the bytes are looked at too. Most of them cannot hold anything of the kind: a glance tells.
"""

import re
from itertools import accumulate
from typing import Any, Final

from pydantic_core import from_json

MOST_LEVELS: Final = 128
MOST_DIGITS: Final = 4300

# The parser's words: a first half without a second one, a second half without a first one.
_LONE_SURROGATE = re.compile("unexpected end of hex escape|lone leading surrogate in hex escape")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_NUMBER = re.compile(rb"[0-9][0-9.eE+-]*")
_DIGIT = re.compile(rb"[0-9]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# What may stand in a number stays, all else becomes a blank.
_NUMBERS = bytes(byte if byte in b"0123456789.eE+-" else ord(" ") for byte in range(256))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class MalformedError(ValueError):
    """The bytes are no JSON; the text is a sentence that says why."""


def read(text: bytes) -> Any:
    """What the JSON says. Raises MalformedError for bytes that are none."""
    try:
        value = from_json(text)
    except ValueError as error:
        raise MalformedError(f"Invalid JSON: {worded(str(error))}") from None
    refused = refusal(text)
    if refused is not None:
        raise MalformedError(f"Invalid JSON: {refused}")
    return value


def worded(error: str) -> str:
    """What the parser says is wrong, with a sentence for the half of a pair of escapes that stands alone."""
    return _LONE_SURROGATE.sub("a lone surrogate is no text,", error)


def refusal(text: bytes) -> str | None:
    """Why a text that pydantic's parser takes is still no JSON of the contract; None where it is JSON."""
    if not _needs_a_look(text):
        return None
    bare = _STRING.sub(b"", text)
    if b"N" in bare or b"I" in bare:
        return "NaN and Infinity are no JSON"
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
        return 0  # No number is as long; to look at each of thousands takes four times as long.
    long = (number for number in _NUMBER.findall(bare) if len(number) > MOST_DIGITS)
    return max((len(_DIGIT.findall(number)) for number in long), default=0)
