"""Looks at the database again and again, over a connection of its own, as long as the process lives."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import asyncpg

from shared.runtime.postgres import connect, is_unavailable
from shared.runtime.roles import API_ROLE
from shared.runtime.settings import Settings


async def keep_looking(
    settings: Settings,
    name: str,
    look: Callable[[asyncpg.Connection], Awaitable[Any]],
    seconds: float,
    answer_seconds: float,
    lost: Callable[[Exception], Any] = lambda _: None,
) -> NoReturn:
    """Call `look` until cancelled, and again over a new connection after the database was unavailable.

    A connection is dropped without a goodbye, because the database may not answer.

    Args:
        settings: how to reach the database.
        name: the application name of the connection.
        look: reads what is to be known.
        seconds: the time between two looks, and before another connection.
        answer_seconds: how long a look may take.
        lost: is called with each error of an unavailable database. All other errors are raised.

    """
    while True:
        try:
            connection = await connect(settings, API_ROLE, name)
            try:
                while True:
                    async with asyncio.timeout(answer_seconds):
                        await look(connection)
                    await asyncio.sleep(seconds)
            finally:
                connection.terminate()
        except Exception as error:
            if not is_unavailable(error):
                raise
            lost(error)
        await asyncio.sleep(seconds)
