"""Folds a shard's entries one by one, from nothing, into what the read models should hold.

It is written from docs/ledger.md, not from the followers' SQL, so that a mistake would have to be made twice. Entries
share `Line` objects: the fold looks up once for each line where its figures are kept.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import date
from typing import Any, Final

from services.auditor.difference import DifferenceError
from services.auditor.tables import Rows
from shared.ledger.decoding import StoredEntry
from shared.rules.entries import Line
from shared.rules.money import format_micros
from shared.rules.vocabulary import CASH_POCKETS, MONEY_KINDS

# The followers' constants, repeated on purpose: a mistake there must not become one here.
QUARTER_US: Final = 15 * 60 * 1_000_000
BLOCK_POSITIONS: Final = 65_536
MOST_PLANS: Final = 600_000
_CASH = frozenset(CASH_POCKETS)
_MONEY_KINDS = frozenset(MONEY_KINDS)

Cell = list[int]


class _Plan:
    """Where the fold keeps the figures of a line."""

    __slots__ = ("block", "cash", "custom", "days", "grant", "limit", "line", "overdelivery", "pocket", "total")

    def __init__(self, line: Line) -> None:
        self.line = line
        self.overdelivery = is_overdelivery(line)
        self.cash = line.pocket in _CASH
        self.limit = line.kind == "credit_limit_change"
        self.custom = line.ad_account_id
        self.block = -1
        self.days: dict[int, Cell] = {}
        self.pocket: Cell | None = None
        self.grant: Cell | None = None
        self.total: Cell = [0]


def is_overdelivery(line: Line) -> bool:
    """Return whether the amount is spend that nobody is billed for, or its reversal: such a line names no pocket."""
    return line.pocket is None and line.kind != "forfeit"


class Fold:
    """What the entries of one shard add up to."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.entries = 0
        self.pockets: defaultdict[tuple[str, str, str], Cell] = defaultdict(lambda: [0])
        self.grants: defaultdict[tuple[str, str, str, str], Cell] = defaultdict(lambda: [0])
        self.totals: defaultdict[tuple[str, str], Cell] = defaultdict(lambda: [0])
        self.reversed: defaultdict[bytes, int] = defaultdict(int)
        self.center_of: dict[str, str] = {}
        self._plans: dict[Line, _Plan] = {}
        self._limits: defaultdict[str, int] = defaultdict(int)
        self._days: defaultdict[tuple[str, str], dict[int, Cell]] = defaultdict(dict)
        self._cash: defaultdict[tuple[str, int], int] = defaultdict(int)
        self._custom: dict[str, list[int]] = {}
        self._signals: dict[tuple[str, str], int] = {}
        self._facts: defaultdict[str, Rows] = defaultdict(dict)
        self._handlers: dict[str, Callable[[StoredEntry, dict[str, Any]], None]] = {
            "business_center_opened": self._business_center_opened,
            "ad_account_opened": self._ad_account_opened,
            "automatic_allocation_enabled": self._automatic_allocation_enabled,
            "budget_set": self._budget,
            "budget_synced": self._budget,
            "budget_reset": self._budget,
            "campaign_budget_set": self._campaign_budget,
            "largest_spend_set": self._largest_spend,
            "pause": self._delivery,
            "resume": self._delivery,
        }

    def add(self, stored: Iterable[StoredEntry]) -> None:
        """Fold entries in the order of their positions. Raise DifferenceError if a debit takes a pocket below zero."""
        plans = self._plans
        for item in stored:
            line, amount, occurred_at, _, _, day, _ = item.entry
            plan = plans.get(line)
            if plan is None:
                plan = self._plan(line)
            if plan.block != item.position // BLOCK_POSITIONS:
                self._note_block(plan, item.position // BLOCK_POSITIONS)
            self.entries += 1
            if amount is None:
                self._fact(item)
                continue
            plan.total[0] += amount
            if plan.pocket is not None:
                self._move(plan, item.position, amount)
            if day is not None:
                self._spend(plan, item, amount, occurred_at, day)

    def _move(self, plan: _Plan, position: int, amount: int) -> None:
        pocket, grant = plan.pocket, plan.grant
        assert pocket is not None
        pocket[0] += amount
        if grant is not None:
            grant[0] += amount
        if amount < 0 and not plan.limit:
            # A credit line may only fall below zero when its limit is set below the used amount, never by a debit.
            if pocket[0] < 0 or (grant is not None and grant[0] < 0):
                raise DifferenceError(self._below_zero(plan, position, pocket[0]))
        elif plan.limit:
            self._limits[plan.line.business_center_id] += amount

    def _spend(self, plan: _Plan, item: StoredEntry, amount: int, occurred_at: int, day: int) -> None:
        line, charged_at = plan.line, item.position
        if line.reverses is not None:
            details = json.loads(line.details or "{}")
            occurred_at, charged_at = details["spend_occurred_at"], details["spend_position"]
            self.reversed[line.reverses] += abs(amount)
        cell = plan.days.get(day)
        if cell is None:
            cell = self._day(plan, day)
        if plan.overdelivery:
            cell[1] += amount
            return
        cell[0] -= amount
        if plan.cash:
            self._cash[plan.custom or "", occurred_at // QUARTER_US * QUARTER_US] -= amount
        custom = self._custom.get(plan.custom or "")
        if custom is not None and charged_at > custom[0]:
            custom[2] -= amount

    def _day(self, plan: _Plan, day: int) -> Cell:
        days = self._days[plan.line.ad_account_id or "", plan.line.campaign_id or ""]
        cell = days.get(day)
        if cell is None:
            cell = days[day] = [0, 0]
        plan.days[day] = cell
        campaign = (plan.line.ad_account_id, plan.line.campaign_id)
        self._facts["balance.campaigns"].setdefault(campaign, ("unlimited", None, 0))
        return cell

    def _plan(self, line: Line) -> _Plan:
        if len(self._plans) > MOST_PLANS:
            self._plans.clear()
        plan = self._plans[line] = _Plan(line)
        center = line.business_center_id
        if line.kind not in self._handlers and line.kind not in _MONEY_KINDS:
            raise DifferenceError(f"shard {self.shard}: the ledger holds an entry of the unknown kind {line.kind!r}")
        plan.total = self.totals[center, line.kind]
        if line.pocket is not None:
            account = (line.ad_account_id or "") if line.holder == "ad_account" else ""
            plan.pocket = self.pockets[center, account, line.pocket]
            if line.grant_id is not None:
                plan.grant = self.grants[center, account, line.pocket, line.grant_id]
        return plan

    def _note_block(self, plan: _Plan, block: int) -> None:
        plan.block = block
        blocks = self._facts["balance.entry_blocks"]
        blocks[plan.line.business_center_id, "", self.shard, block] = ()
        if plan.line.ad_account_id is not None:
            blocks[plan.line.business_center_id, plan.line.ad_account_id, self.shard, block] = ()

    def _below_zero(self, plan: _Plan, position: int, balance: int) -> str:
        line = plan.line
        whose = line.ad_account_id if line.holder == "ad_account" else line.business_center_id
        return (
            f"shard {self.shard}, position {position}: {line.kind} takes the pocket {line.pocket} of {whose}"
            f" to {format_micros(balance)}, below zero"
        )

    # ---- Facts ------------------------------------------------------------------------------------------------

    def _fact(self, item: StoredEntry) -> None:
        line = item.line
        self._handlers[line.kind](item, json.loads(line.details or "{}"))

    def _business_center_opened(self, item: StoredEntry, details: dict[str, Any]) -> None:
        line, occurred_at = item.line, item.occurred_at
        self._facts["balance.business_centers"][(line.business_center_id,)] = (
            self.shard,
            details["currency"],
            details["time_zone"],
            details["finance_roles"],
            occurred_at,
        )

    def _ad_account_opened(self, item: StoredEntry, details: dict[str, Any]) -> None:
        line, occurred_at = item.line, item.occurred_at
        center, account = line.business_center_id, line.ad_account_id
        assert account is not None
        self.center_of[account] = center
        self._facts["balance.ad_accounts"][(account,)] = (
            center,
            self.shard,
            details["billing"],
            details["buying_type"],
            details["time_zone"],
            details["owned"],
            occurred_at,
        )
        if details["left_out"] is not None:
            self._facts["balance.left_out"].setdefault((center, account), (details["left_out"],))

    def _automatic_allocation_enabled(self, item: StoredEntry, details: dict[str, Any]) -> None:
        center = item.line.business_center_id
        self._facts["balance.automatic_allocation"][(center,)] = (item.occurred_at,)
        for each in details["left_out"]:
            self._facts["balance.left_out"].setdefault((center, each["ad_account_id"]), (each["reason"],))

    def _budget(self, item: StoredEntry, details: dict[str, Any]) -> None:
        account = item.line.ad_account_id
        assert account is not None
        day = date.fromisoformat(details["day"]).toordinal()
        self._facts["balance.budgets"][(account,)] = (
            details["mode"],
            details["amount"],
            day,
            details["changes_today"],
            item.position,
        )
        if details["mode"] != "custom":
            self._custom.pop(account, None)
        elif details["restarted"]:
            self._custom[account] = [item.position, details["started_at"], 0]

    def _campaign_budget(self, item: StoredEntry, details: dict[str, Any]) -> None:
        line = item.line
        self._facts["balance.campaigns"][line.ad_account_id, line.campaign_id] = (
            details["mode"],
            details["amount"],
            item.position,
        )

    def _largest_spend(self, item: StoredEntry, details: dict[str, Any]) -> None:
        center = item.line.business_center_id
        self._facts["balance.largest_spends"][center, item.position] = (details["amount"],)

    def _delivery(self, item: StoredEntry, details: dict[str, Any]) -> None:
        line = item.line
        entity = (line.ad_account_id or "", line.campaign_id or "")
        self._facts["balance.pauses"][entity] = (tuple(details["causes"]), item.position)
        self._signals[entity] = item.position

    # ---- Results ----------------------------------------------------------------------------------------------

    def rows(self, follower: str) -> dict[str, Rows]:
        """Return the rows that a follower's tables should hold after the entries folded so far, by table."""
        if follower == "incentives":
            return {"incentives.cash_spend": {key: (amount,) for key, amount in self._cash.items()}}
        if follower == "signals":
            return {"signals.latest": {(self.shard, *key): (at,) for key, at in self._signals.items()}}
        assert follower == "balance", f"the audit has no fold for the read model {follower}"
        return {
            **self._facts,
            "balance.custom_budgets": {(account,): tuple(kept) for account, kept in self._custom.items()},
            "balance.pockets": {key: tuple(cell) for key, cell in self.pockets.items()},
            "balance.grants": {key: tuple(cell) for key, cell in self.grants.items()},
            "balance.credit_limits": {(center,): (limit,) for center, limit in self._limits.items()},
            **self._spend_by_day(),
        }

    def _spend_by_day(self) -> dict[str, Rows]:
        campaigns: Rows = {}
        accounts: defaultdict[tuple[str, int], Cell] = defaultdict(lambda: [0, 0])
        centers: defaultdict[tuple[str, int], Cell] = defaultdict(lambda: [0, 0])
        for (account, campaign), days in self._days.items():
            for day, (billed, overdelivered) in days.items():
                campaigns[account, campaign, day] = (billed, overdelivered)
                for cell in (accounts[account, day], centers[self.center_of[account], day]):
                    cell[0] += billed
                    cell[1] += overdelivered
        return {
            "balance.campaign_days": campaigns,
            "balance.ad_account_days": {key: tuple(cell) for key, cell in accounts.items()},
            "balance.business_center_days": {key: tuple(cell) for key, cell in centers.items()},
        }

    def budget(self, account: str) -> tuple[Any, ...] | None:
        """Return an account's budget: mode, amount in micros, day, changes on that day. None: it never had one.

        Then follow, for custom budgets only, its start (position and time in µs) and what it has counted, in micros.
        """
        kept = self._facts["balance.budgets"].get((account,))
        return None if kept is None else (*kept[:4], *self._custom.get(account, (None, None, None)))

    def campaign_budget(self, campaign: tuple[str, str]) -> tuple[Any, ...]:
        """Return the mode and the amount, in micros, of a campaign's budget. The key is ad account and campaign."""
        return self._facts["balance.campaigns"][campaign][:2]

    def causes(self, entity: tuple[str, str]) -> tuple[str, ...]:
        """Return the pause causes of an ad account (campaign '') or campaign that was paused at least once."""
        causes: tuple[str, ...] = self._facts["balance.pauses"][entity][0]
        return causes

    def billed(self) -> dict[str, int]:
        """Return the spend billed to each Business Center, net of reversals, in micros."""
        sums: defaultdict[str, int] = defaultdict(int)
        for (account, _), days in self._days.items():
            sums[self.center_of[account]] += sum(billed for billed, _ in days.values())
        return dict(sums)
