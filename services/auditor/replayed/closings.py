"""The closings of the balance follower's books: what moved between two of them, and the state at each.

The audit folds it from nothing, like the rest, up to the last closing. The follower chooses where it closes the books,
and its rows say so. At most `MOST_BETWEEN` positions may lie between two closings, or after the last one.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from services.auditor.difference import expect
from services.auditor.replayed.fold import QUARTER_US, Fold, is_overdelivery
from services.auditor.tables import Rows
from shared.ledger.decoding import StoredEntry
from shared.rules.entries import Line
from shared.rules.vocabulary import BUDGET_KINDS, DELIVERY_KINDS

# The follower's distance between two closings, repeated on purpose: a mistake there must not become one here.
MOST_BETWEEN: Final = 524_288


def closings_of(shard: int, held: Rows, checkpoint: int) -> list[int]:
    """Return the positions at which the books of a shard were closed, in order.

    Raise DifferenceError if one lies beyond the checkpoint, or if two are too far apart.
    """
    positions = sorted(position for its_shard, position in held if its_shard == shard)
    for before, position in zip([0, *positions], [*positions, checkpoint], strict=True):
        expect(
            position <= checkpoint,
            f"balance.closings: shard {shard} was closed at {position}, but the checkpoint is at {checkpoint}",
        )
        expect(
            position - before <= MOST_BETWEEN,
            f"balance.closings: shard {shard} was not closed between the positions {before} and {position}",
        )
    return positions


class ClosingFold:
    """The sums and the changed entities of one shard since the last closing."""

    def __init__(self, shard: int, closings: list[int]) -> None:
        self.last = closings[-1] if closings else 0
        self._shard = shard
        self._clear()

    def _clear(self) -> None:
        self._moved: defaultdict[tuple[Line, int], int] = defaultdict(int)
        self._spent: defaultdict[tuple[Line, int], int] = defaultdict(int)
        self._budgets: set[str] = set()
        self._campaigns: set[tuple[str, str]] = set()
        self._entities: set[tuple[str, str]] = set()

    def add(self, stored: Iterable[StoredEntry]) -> None:
        """Add entries, in the order of their positions."""
        moved, spent = self._moved, self._spent
        for item in stored:
            line, amount, _, _, _, day, _ = item.entry
            if amount is None:
                self._note(line)
                continue
            moved[line, item.recorded_at // QUARTER_US * QUARTER_US] += amount
            if day is not None:
                spent[line, day] += amount

    def _note(self, line: Line) -> None:
        account, campaign = line.ad_account_id or "", line.campaign_id or ""
        if line.kind in BUDGET_KINDS:
            self._budgets.add(account)
        elif line.kind == "campaign_budget_set":
            self._campaigns.add((account, campaign))
        elif line.kind in DELIVERY_KINDS:
            self._entities.add((account, campaign))

    def close(self, position: int, fold: Fold) -> dict[str, Rows]:
        """Return the rows of the closing at this position, by table, and begin the next closing.

        `fold` must hold the entries up to this position and none beyond it.
        """
        key = (self._shard, position)
        rows: dict[str, Rows] = {"balance.closings": {key: ()}, "balance.pocket_movements": self._movements(key)}
        rows.update(self._spend(key))
        accounts = self._budgets | {line.ad_account_id or "" for line, _ in self._spent}
        rows["balance.budget_closings"] = {
            (*key, account): budget for account in accounts if (budget := fold.budget(account)) is not None
        }
        rows["balance.campaign_budget_closings"] = {
            (*key, *campaign): fold.campaign_budget(campaign) for campaign in self._campaigns
        }
        rows["balance.pause_closings"] = {(*key, *entity): (fold.causes(entity),) for entity in self._entities}
        self._clear()
        return rows

    def _movements(self, key: tuple[int, int]) -> Rows:
        sums: defaultdict[tuple[str, str, str, int], list[int]] = defaultdict(lambda: [0, 0])
        for (line, quarter), amount in self._moved.items():
            if line.pocket is not None:
                holder = (line.ad_account_id or "") if line.holder == "ad_account" else ""
                cell = sums[line.business_center_id, holder, line.pocket, quarter]
                cell[0] += amount
                if line.kind == "credit_limit_change":
                    cell[1] += amount
        return {(*key, *pocket): tuple(cell) for pocket, cell in sums.items()}

    def _spend(self, key: tuple[int, int]) -> dict[str, Rows]:
        campaigns: defaultdict[tuple[str | int, ...], list[int]] = defaultdict(lambda: [0, 0])
        accounts: defaultdict[tuple[str | int, ...], list[int]] = defaultdict(lambda: [0, 0])
        centers: defaultdict[tuple[str | int, ...], list[int]] = defaultdict(lambda: [0, 0])
        for (line, day), amount in self._spent.items():
            account, campaign = line.ad_account_id or "", line.campaign_id or ""
            overdelivery = is_overdelivery(line)
            center = (line.business_center_id,)
            for cell in (campaigns[account, campaign, day], accounts[account, day], centers[center]):
                cell[overdelivery] += amount if overdelivery else -amount
        named = (("campaign", campaigns), ("ad_account", accounts), ("business_center", centers))
        return {
            f"balance.{name}_spend": {(*key, *entity): tuple(cell) for entity, cell in sums.items()}
            for name, sums in named
        }
