"""An answer that is made in pieces is the same JSON as in one piece, wherever its long lists are."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.api.answers.pieces import document, page

LONG = [{"id": number, "why": "ö"} for number in range(130)]
VALUES: tuple[dict[str, Any], ...] = (
    {},
    {"a": []},
    {"a": LONG},
    {"a": {"b": LONG, "c": None}, "d": [1], "e": LONG[:50], "f": LONG[:51]},
)


@pytest.mark.parametrize("value", VALUES)
async def test_a_document_in_pieces_is_the_same_json(value: dict[str, Any]) -> None:
    assert json.loads(bytes((await document(value)).body)) == value


async def test_a_page_in_pieces_is_the_same_json() -> None:
    async def entries() -> AsyncIterator[dict[str, Any]]:
        for value in VALUES:
            yield value

    answer = await page("entries", entries(), next=None)
    assert json.loads(bytes(answer.body)) == {"entries": [*VALUES], "next": None}
