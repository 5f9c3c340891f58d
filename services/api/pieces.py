"""Long answers are made a piece at a time, with a rest after each: in between others are answered.

One thread does everything here. Whoever asks for a thousand rows waits for some tens of milliseconds more; whoever asks
for one does not wait for the thousand.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from time import perf_counter
from typing import Any, Final, TypeVar

from fastapi import Response
from pydantic_core import to_json

T = TypeVar("T")

WORK_SECONDS: Final = 0.0005
REST_SECONDS: Final = 0.001


async def unhurried(rows: Iterable[T]) -> AsyncIterator[T]:
    """The rows, with a rest for whoever has worked with them for half a millisecond."""
    began = perf_counter()
    for row in rows:
        yield row
        if perf_counter() - began > WORK_SECONDS:
            await asyncio.sleep(REST_SECONDS)
            began = perf_counter()


async def page(name: str, entries: AsyncIterator[Any], **rest: Any) -> Response:
    """A JSON object with a long list, each entry written when it is made: nobody looks through all of them again."""
    written = [to_json(each) async for each in entries]
    body = b"".join((b'{"', name.encode(), b'":[', b",".join(written), b"],", to_json(rest)[1:]))
    return Response(body, media_type="application/json")
