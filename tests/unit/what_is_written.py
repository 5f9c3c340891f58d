"""The entries that a book writes for commands and events, in a short form."""

import json
from typing import Any
from uuid import UUID

from shared.rules.entries import Entry
from shared.rules.state import NO_GRANTS, AdAccount, BusinessCenter, GrantPocket
from tests.unit.test_rules_tables import Book

Movement = tuple[str, str | None, str | None, str | None, str | None, int | None]


def movement(entry: Entry) -> Movement:
    """Return kind, account, holder, pocket, grant and amount."""
    line, amount, *_ = entry
    return line.kind, line.ad_account_id, line.holder, line.pocket, line.grant_id, amount


def details(entry: Entry) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(entry[0].details or "{}")
    return found


def written(book: Book, type: str, role: str = "admin", **fields: Any) -> list[Entry]:
    """Return the entries that an accepted command writes."""
    before = len(book.rules.entries)
    assert book.do(type, role, **fields) is None
    return book.rules.entries[before:]


def moved(book: Book, type: str, **fields: Any) -> list[Movement]:
    """Return what an accepted command writes, without pauses and resumes."""
    return [movement(each) for each in written(book, type, **fields) if each[0].kind not in ("pause", "resume")]


def reverse(book: Book, spend: int, amount: int, **fields: Any) -> str:
    return book.rules.event(book.event(amount, reverses=UUID(int=spend).bytes, **fields))[0]


def charge(book: Book, id: int, amount: int, **fields: Any) -> None:
    assert book.rules.event(book.event(amount, id=id, **fields))[0] == "charged"


def credit(amount: int, direction: str = "to_ad_account") -> dict[str, Any]:
    return {"ad_account_id": "a", "direction": direction, "pocket": "credit", "amount": amount}


def give_own_pockets(center: BusinessCenter, account: AdAccount) -> None:
    """Give the holders pockets of their own, as the first grant does. A test may then set what they hold."""
    for holder in (center, account):
        for kind in ("vouchers", "ad_credits"):
            if getattr(holder, kind) is NO_GRANTS:
                setattr(holder, kind, GrantPocket())
