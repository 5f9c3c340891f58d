"""Makes long answers in pieces, with a rest after each, so that other requests are answered in between.

One thread does all the work. A request for a thousand rows takes some tens of milliseconds longer this way, but a
request for one row does not wait for the thousand.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from time import perf_counter
from typing import Any, Final, TypeVar

from fastapi import Response
from pydantic_core import to_json

T = TypeVar("T")

WORK_SECONDS: Final = 0.0005
REST_SECONDS: Final = 0.001
_AT_ONCE: Final = 50  # entries of a long list


async def unhurried(rows: Iterable[T]) -> AsyncIterator[T]:
    """Yield the rows, with a rest whenever the caller has worked on them for half a millisecond."""
    began = perf_counter()
    for row in rows:
        yield row
        if perf_counter() - began > WORK_SECONDS:
            await asyncio.sleep(REST_SECONDS)
            began = perf_counter()


async def page(name: str, entries: AsyncIterator[Any], **rest: Any) -> Response:
    """Return a JSON object with a long list and the fields `rest`.

    Each entry is serialised when it is made, so that the whole list is not serialised at once.
    """
    written = [await _written(each) async for each in entries]
    body = b"".join((b'{"', name.encode(), b'":[', b",".join(written), b"],", _json(rest)[1:]))
    return Response(body, media_type="application/json")


async def document(value: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON object that may have long lists anywhere in it."""
    return Response(await _written(value), headers=headers, media_type="application/json")


async def _written(value: Any) -> bytes:
    if not _is_long(value):
        return _json(value)
    return b"".join([part async for part in unhurried(_parts(value))])


def _is_long(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_is_long, value.values()))
    return isinstance(value, list) and len(value) > _AT_ONCE


def _parts(value: Any) -> Iterator[bytes]:
    """Yield the JSON of a value in parts, none of which holds more than a few entries of a long list."""
    if not _is_long(value):
        yield _json(value)
    elif isinstance(value, dict):
        for number, (name, each) in enumerate(value.items()):
            yield b"%b%b:" % (b"," if number else b"{", _json(name))
            yield from _parts(each)
        yield b"}"
    else:
        for first in range(0, len(value), _AT_ONCE):
            yield b"%b%b" % (b"," if first else b"[", _json(value[first : first + _AT_ONCE])[1:-1])
        yield b"]"


def _json(value: Any) -> bytes:
    """Return JSON. Details of the ledger may hold a number beyond a double, for which JSON has no word."""
    return to_json(value, inf_nan_mode="null")
