"""Runs in a service's container: executes the SQL statements in each line of stdin, and prints PostgreSQL's answers.

Its source is sent to the container, so that the image does not need to contain the tests.
"""

import asyncio
import json
import sys
from typing import Any

import asyncpg

from shared.runtime.postgres import connection_options
from shared.runtime.settings import load_settings

_BOUNDS = {"lock_timeout": "2000", "statement_timeout": "10000", "application_name": "security check"}


def _shown(rows: list[Any]) -> list[list[Any]]:
    return [[None if value is None else str(value) for value in row.values()] for row in rows]


async def _say(connection: Any, mode: str, statement: str) -> tuple[str, str, list[list[Any]]]:
    transaction = connection.transaction()
    await transaction.start()
    keeps = False
    try:
        if mode == "read":
            return "", "", _shown(await connection.fetch(statement))
        said = await connection.execute(statement)
    except asyncpg.PostgresError as error:
        return str(error.sqlstate), str(error), []
    else:
        keeps = mode == "keep"
        return "", said, []
    finally:
        await (transaction.commit() if keeps else transaction.rollback())


async def _connect(options: dict[str, Any], database: str) -> tuple[str, str, list[list[Any]]]:
    try:
        connection = await asyncpg.connect(**options, database=database)
    except (asyncpg.PostgresError, OSError) as error:
        return getattr(error, "sqlstate", None) or type(error).__name__, str(error), []
    await connection.close()
    return "", "connected", []


async def _log_in(options: dict[str, Any], user: str, password: str | None) -> tuple[str, str, list[list[Any]]]:
    given = {name: value for name, value in options.items() if name != "password" or password is None}
    return await _connect({**given, "user": user, **({} if password is None else {"password": password})}, "drawdown")


async def _flood(options: dict[str, Any], most: int) -> tuple[str, str, list[list[Any]]]:
    """Open connections until one is refused; return how many were opened."""
    opened: list[Any] = []
    try:
        for _ in range(most):
            opened.append(await asyncpg.connect(**options))
    except asyncpg.PostgresError as error:
        return str(error.sqlstate), str(error), [[len(opened)]]
    finally:
        for connection in opened:
            await connection.close()
    return "", "", [[len(opened)]]


async def _answers(options: dict[str, Any], asked: dict[str, Any]) -> list[tuple[str, str, list[list[Any]]]]:
    answers = []
    if asked["mode"] == "connect":
        answers = [await _connect(options, name) for name in asked["statements"]]
    elif asked["mode"] == "log in":
        answers = [
            await _log_in(options, name, each) for name in asked["statements"] for each in (None, "", "postgres")
        ]
    elif asked["mode"] == "flood":
        answers = [await _flood(options, int(most)) for most in asked["statements"]]
    else:
        connection = await asyncpg.connect(**options, server_settings=_BOUNDS)
        answers = [await _say(connection, asked["mode"], each) for each in asked["statements"]]
        await connection.close()
    return answers


def _main() -> None:
    options = connection_options(load_settings())
    for line in sys.stdin:
        print(json.dumps(asyncio.run(_answers(options, json.loads(line)))), flush=True)


if __name__ == "__main__":
    _main()
