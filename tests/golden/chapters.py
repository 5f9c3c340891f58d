"""What was done to the golden ledger, in chapters. A chapter that is recorded is never decided from here again.

To hold a change of a rule for ever, add a chapter at the end and run `python -m tests.golden`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any
from uuid import UUID

from shared.rules.calendar import Zones
from shared.rules.policy import STANDARD, Policy
from tests.model.forms import rfc3339
from tests.model.workload import Work, Workload
from tests.zones import release

START_US = int(datetime(2027, 3, 10, 12, tzinfo=UTC).timestamp()) * 1_000_000
HOUR_US = 3_600_000_000
OTHER = Policy("other-order", ("ad_credit", "voucher", "cash", "credit"), ("cash", "credit_line"))


@dataclass(frozen=True, slots=True)
class Scene:
    """One batch: what comes, when, and what the batch names."""

    works: list[Work]
    now: int
    policy: Policy
    rules: int
    zones: Zones


class Told:
    """Messages in short words, about one Business Center. Their ids are numbers, so that the file stays small."""

    def __init__(self, center: str, first_id: int) -> None:
        self.center = center
        self._ids = count(first_id)

    def command(self, type_: str, **fields: Any) -> Work:
        """A command of an admin."""
        common = {"type": type_, "business_center_id": self.center, "issued_at": "2027-03-10T12:00:00Z"}
        actor = {"id": "ann", "role": "admin"}
        return Work("command", {"command_id": self._id(), **common, "actor": actor, **fields})

    def account(self, name: str, zone: str = "Asia/Tokyo", billing: str = "monthly_invoicing") -> Work:
        """An account is opened."""
        kind = {"billing": billing, "buying_type": "auction", "time_zone": zone}
        return self.command("open_ad_account", ad_account_id=f"{self.center}-{name}", **kind)

    def spend(self, name: str, amount: str, now: int) -> Work:
        """The account spends, just now."""
        ids = {"event_id": self._id(), "business_center_id": self.center, "ad_account_id": f"{self.center}-{name}"}
        spent = {"campaign_id": "spring", "amount": amount, "currency": "USD", "occurred_at": rfc3339(now)}
        return Work("event", {"type": "spend", **ids, **spent})

    def reversal(self, spend: Work, now: int) -> Work:
        """The whole spend is taken back."""
        taken = {"type": "reversal", "event_id": self._id(), "reverses": spend.message["event_id"], "reason": "why not"}
        return Work("event", {**spend.message, **taken, "occurred_at": rfc3339(now)})

    def _id(self) -> str:
        return str(UUID(int=next(self._ids)))


def told(now: int, center: str, first_id: int, accounts: int) -> Iterator[tuple[int, list[Work]]]:
    """What chance may not bring: credit, a reset, a spend reversed after its voucher expired, many who take part."""
    tell = Told(center, first_id)
    mine = {"ad_account_id": f"{center}-a"}
    credit = {"direction": "to_ad_account", "pocket": "credit", "amount": "30"}
    voucher = {"voucher_id": "v", "amount": "20", "expires_at": rfc3339(now + HOUR_US)}
    spent = [tell.spend("a", "5", now), tell.spend("a", "18", now), tell.spend("b", "3", now)]
    yield (
        now,
        [
            tell.command("open_business_center", currency="USD", time_zone="America/New_York"),
            *(tell.account(name, billing=billing) for name, billing in (("a", "monthly_invoicing"), ("b", "prepay"))),
            tell.command("set_credit_line", limit="100"),
            tell.command("transfer_balance", **mine, **credit),
            tell.command("grant_voucher", **mine, **voucher),
            tell.command("set_budget", **mine, mode="custom", amount="25"),
            tell.command("set_campaign_budget", **mine, campaign_id="spring", mode="daily", amount="24"),
            tell.command("deposit_cash", ad_account_id=f"{center}-b", amount="2"),
        ],
    )
    yield now, spent
    yield now + 2 * HOUR_US, [tell.reversal(each, now + 2 * HOUR_US) for each in spent]
    yield now + 3 * HOUR_US, [tell.command("reset_budget", **mine), tell.command("disable_automatic_allocation")]
    yield now + 4 * HOUR_US, [tell.account(f"n{number}", "UTC") for number in range(accounts)]
    yield now + 5 * HOUR_US, [tell.command("enable_automatic_allocation")]


def first_rules(now: int) -> Iterator[Scene]:
    """Some days of everything, under two policies."""
    zones = release("2026a")
    for at, works in told(now, "first", 10_000, accounts=2):
        yield Scene(works, at, STANDARD, 1, zones)
    now += 5 * HOUR_US
    workload = Workload(26, centers=3, prefix="one-")
    yield Scene(workload.opening(now), now, STANDARD, 1, zones)
    for step in range(90):
        now += HOUR_US if step % 4 else 0
        works = [workload.next(now) for _ in range(1 + step % 3)]
        yield Scene(works, now, OTHER if 40 < step < 70 else STANDARD, 1, zones)


def bounded_and_other_days(now: int) -> Iterator[Scene]:
    """The second version begins; a day later Tokyo's days become UTC's and New York's those of Kathmandu, and back."""
    usual = release("2026a")
    moved = release("2026b", Asia__Tokyo="UTC", America__New_York="Asia/Kathmandu")
    for at, works in told(now, "second", 20_000, accounts=201):
        yield Scene(works, at, STANDARD, 2, usual)
    now += 5 * HOUR_US
    workload = Workload(71, centers=3, prefix="two-")
    yield Scene(workload.opening(now), now, STANDARD, 2, usual)
    for step in range(90):
        now += HOUR_US if step % 4 else 0
        works = [workload.next(now) for _ in range(1 + step % 3)]
        yield Scene(works, now, OTHER if step % 50 > 35 else STANDARD, 2, moved if 30 < step < 75 else usual)


CHAPTERS: dict[str, Callable[[int], Iterator[Scene]]] = {
    "the first rules": first_rules,
    "bounded, and other days": bounded_and_other_days,
}
