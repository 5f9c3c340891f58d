"""Makes long answers in pieces, with a rest after each, so that other requests are answered in between.

One thread does all the work. A request for a thousand rows takes some tens of milliseconds longer this way, but a
request for one row does not wait for the thousand.
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
    # Details of the ledger may hold a number beyond a double, which would be `Infinity`. That is not JSON.
    written = [to_json(each, inf_nan_mode="null") async for each in entries]
    body = b"".join((b'{"', name.encode(), b'":[', b",".join(written), b"],", to_json(rest)[1:]))
    return Response(body, media_type="application/json")
