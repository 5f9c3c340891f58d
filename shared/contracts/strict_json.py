"""JSON as the contract accepts it: RFC 8259, nested at most 128 levels deep, numbers of at most 4,300 digits.

pydantic's parser accepts more: `NaN` and `Infinity`, deeper nesting, longer fractions; and a model does not check the
fields that it ignores. So the bytes are checked as well, except that a quick test clears most texts.

The parser also accepts less: RFC 8259 allows the escape of a lone surrogate, and JavaScript writes one for a text that
was cut within an emoji. No field of the contract may hold one, because it is not valid Unicode. Other fields may.
"""

import re
from collections.abc import Callable
from itertools import accumulate
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

T = TypeVar("T")

MOST_LEVELS: Final = 128
MOST_DIGITS: Final = 4300

# The parser's messages for half of a surrogate pair: a first half without its second, a second without its first.
_HALF_A_PAIR = re.compile("unexpected end of hex escape|lone leading surrogate in hex escape")
LONE_SURROGATE: Final = "a lone surrogate is not a character"
# An escape of JSON: a pair of surrogates, which is one character, or a lone one (the group), or any other.
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL
)
# What stands for a lone surrogate: NUL, which no known field may hold; and another, to tell it from a NUL that came.
NUL: Final = rb"\u0000"
OTHER_MARK: Final = rb"\u0001"
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


def read_around_lone_surrogates(text: bytes) -> Any:
    """Parse JSON as `read` does, but read the escape of a lone surrogate as NUL, which no known field may hold."""
    return read(without_lone_surrogates(text))


def validated(validate: Callable[[bytes], T], text: bytes) -> T:
    """Return what the validator makes of the JSON, even if a field that it does not read holds a lone surrogate.

    Raises its ValidationError: for the text as it came if a known field holds one, else for the text without it.
    """
    try:
        return validate(text)
    except ValidationError as error:
        around = without_lone_surrogates(text)
        if around == text:
            raise
        try:
            return validate(around)
        except ValidationError as other:
            elsewise = _wrong_texts(validate, without_lone_surrogates(text, OTHER_MARK))
            is_about_surrogate = any("\0" in wrong for wrong in _wrong_texts(validate, around) - elsewise)
            raise (error if is_about_surrogate else other) from None


def _wrong_texts(validate: Callable[[bytes], Any], text: bytes) -> set[str]:
    """Return the fields of the model, and the tags of unions, that are wrong, as far as they are texts."""
    try:
        validate(text)
    except ValidationError as error:
        wrong = [each for fault in error.errors() for each in (fault["input"], fault.get("ctx", {}).get("tag"))]
        return {each for each in wrong if isinstance(each, str)}
    return set()


def worded(error: str) -> str:
    """Return the parser's message, with plainer words for a lone half of a surrogate pair."""
    return _HALF_A_PAIR.sub(f"{LONE_SURROGATE},", error)


def without_lone_surrogates(text: bytes, mark: bytes = NUL) -> bytes:
    """Return the JSON with the escape of a mark in place of each lone surrogate's."""
    return _ESCAPE.sub(lambda found: mark if found[1] else found[0], text)


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
