"""Sums that must be right whatever the rules decided.

For each Business Center, over all its pockets and those of its ad accounts:

    money in = money held + billed + forfeited

Money in is deposits, grants, changes of the credit limit and repayments. Held is what the rules have in all pockets
after deciding everything again (for the credit line: the available amount). Billed is the spend of all days, net of
reversals. Forfeited is what expired, and what was returned to a grant that had expired. Movements between pockets are
in none of these sums, so they must add up to zero.
"""

from collections import defaultdict
from collections.abc import Iterator

import asyncpg

from services.auditor.difference import DifferenceError, expect
from services.auditor.replayed.fold import Fold
from shared.ledger.lookup import find_events, read_events
from shared.rules.events import AMOUNT
from shared.rules.money import format_micros
from shared.rules.shard import Shard
from shared.rules.state import BusinessCenter
from shared.rules.vocabulary import AD_ACCOUNT_POCKETS, IN_KINDS

_BLOCK = 1_000


def check_pockets(rules: Shard, fold: Fold) -> None:
    """Raise DifferenceError unless the entries of each pocket add up to what the rules hold in it."""
    held = {key: amount for center in rules.business_centers.values() for key, amount in _held(center)}
    for key in sorted(held.keys() | fold.pockets.keys()):
        folded = fold.pockets[key][0] if key in fold.pockets else 0
        center, account, pocket = key
        expect(
            held.get(key, 0) == folded,
            f"shard {fold.shard}: the entries of the pocket {pocket} of {account or center} add up to"
            f" {format_micros(folded)}, but the rules hold {format_micros(held.get(key, 0))}",
        )


def _held(center: BusinessCenter) -> Iterator[tuple[tuple[str, str, str], int]]:
    yield (center.id, "", "cash"), center.cash
    yield (center.id, "", "voucher"), center.vouchers.total
    yield (center.id, "", "ad_credit"), center.ad_credits.total
    yield (center.id, "", "credit_line"), center.credit_available
    for account in center.accounts.values():
        for pocket in AD_ACCOUNT_POCKETS:
            yield (center.id, account.id, pocket), account.holds(pocket)


def check_identity(rules: Shard, fold: Fold) -> dict[str, int]:
    """Check money in = held + billed + forfeited for each Business Center. Raise DifferenceError.

    Return the four sums over the whole shard, in micros, as "in", "held", "billed" and "forfeited".
    """
    billed = fold.billed()
    sums: defaultdict[str, int] = defaultdict(int)
    for center in rules.business_centers.values():
        parts = {
            "in": sum(_total(fold, center.id, kind) for kind in IN_KINDS),
            "held": sum(amount for _, amount in _held(center)),
            "billed": billed.get(center.id, 0),
            "forfeited": _total(fold, center.id, "forfeit") - _total(fold, center.id, "expiry"),
        }
        if parts["in"] != parts["held"] + parts["billed"] + parts["forfeited"]:
            told = ", ".join(f"{name} {format_micros(amount)}" for name, amount in parts.items())
            raise DifferenceError(f"shard {fold.shard}: the money of {center.id} does not add up: {told}")
        for name, amount in parts.items():
            sums[name] += amount
    return dict(sums)


def _total(fold: Fold, center: str, kind: str) -> int:
    return fold.totals[center, kind][0] if (center, kind) in fold.totals else 0


async def check_reversals(connection: asyncpg.Connection, shard: int, fold: Fold) -> None:
    """Raise DifferenceError if a spend was reversed beyond its amount."""
    spends = list(fold.reversed)
    for start in range(0, len(spends), _BLOCK):
        ids = spends[start : start + _BLOCK]
        positions = await find_events(connection, shard, ids)
        events = await read_events(connection, shard, positions.values(), lambda _: "")
        for id_ in ids:
            amount = events[id_][AMOUNT] if id_ in events else 0
            expect(
                fold.reversed[id_] <= amount,
                f"shard {shard}, position {positions.get(id_)}: the spend {id_.hex()} of {format_micros(amount)}"
                f" was reversed by {format_micros(fold.reversed[id_])}",
            )
