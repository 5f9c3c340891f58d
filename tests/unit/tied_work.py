"""Random histories with many grants: tied, shared, used up, expired, granted twice, paid back and moved.

A history is a list of (policy, time in µs, messages). The same seed gives the same history.
"""

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from shared.rules.policy import STANDARD, Policy
from shared.rules.shard import DAY_US

HOUR = 3_600_000_000
NOON = int(datetime(2027, 3, 10, 12, tzinfo=UTC).timestamp()) * 1_000_000
ZONES = ("UTC", "Asia/Tokyo", "America/New_York")
ACCOUNTS = {
    "a0": ("monthly_invoicing", "auction"),
    "a1": ("monthly_invoicing", "auction"),
    "a2": ("autopay", "auction"),
    "a3": ("monthly_invoicing", "reservation"),
}
NO_VOUCHERS = Policy("no-vouchers", ("ad_credit", "cash", "credit"), ("cash", "credit_line"))
CASH_FIRST = Policy("cash-first", ("cash", "voucher", "ad_credit", "credit"), ("credit_line", "voucher", "cash"))
POLICIES = (STANDARD, STANDARD, NO_VOUCHERS, CASH_FIRST)

Message = tuple[str, bytes]
Batch = tuple[Policy, int, list[Message]]


class TiedWork:
    """One Business Center with four accounts, of which two can join automatic allocation."""

    def __init__(self, seed: int, campaigns: int = 6) -> None:
        self._random = random.Random(seed)
        self._campaigns = [f"c{number}" for number in range(campaigns)]
        self._now = NOON
        self._policy = STANDARD
        self._spends: list[dict[str, Any]] = []
        self._vouchers = ["v"]
        self._credits = ["x"]

    def history(self, batches: int) -> Iterator[Batch]:
        """Return batches of one to five messages. Half of the histories enable automatic allocation in some batch."""
        enabled_from = self._random.choice((batches // 6, batches // 2, batches, batches))
        yield STANDARD, NOON, self._opening()
        for number in range(batches):
            self._pass_time()
            messages = [self._next() for _ in range(self._random.choice((1, 1, 2, 5)))]
            if number >= enabled_from and self._chance(0.1):
                messages.append(self._command("enable_automatic_allocation"))
            yield self._policy, self._now, messages

    def _opening(self) -> list[Message]:
        return [
            self._command("open_business_center", currency="USD", time_zone="UTC"),
            *[
                self._command(
                    "open_ad_account",
                    ad_account_id=account,
                    billing=billing,
                    buying_type=buying_type,
                    time_zone=self._random.choice(ZONES),
                )
                for account, (billing, buying_type) in ACCOUNTS.items()
            ],
            self._command("set_credit_line", limit="20"),
        ]

    def _pass_time(self) -> None:
        """Advance the time by minutes or hours, sometimes to the exact moment at which a day begins in some zone."""
        if self._chance(0.25):
            self._now += self._random.choice((1, 60_000_000, HOUR, 5 * HOUR))
        if self._chance(0.06):
            self._now = (self._now // DAY_US + 1) * DAY_US + self._random.choice((0, 0, 5 * HOUR, 15 * HOUR))
        if self._chance(0.02):
            self._policy = self._random.choice(POLICIES)

    def _next(self) -> Message:
        makers = [self._tied, self._untied, self._ad_credit, self._allocate, self._cash, self._transfer]
        makers += [self._campaign_budget, self._account_budget, self._reversal, self._spend]
        return self._random.choices(makers, (10, 5, 3, 7, 4, 3, 7, 2, 19, 40))[0]()

    # ---- Commands ---------------------------------------------------------------------------------------------

    def _tied(self) -> Message:
        campaigns = self._random.sample(self._campaigns, self._random.choice((1, 1, 2, 3)))
        return self._grant_voucher(ad_account_id=self._account(), campaign_ids=campaigns)

    def _untied(self) -> Message:
        return self._grant_voucher(**({"ad_account_id": self._account()} if self._chance(0.7) else {}))

    def _grant_voucher(self, **fields: Any) -> Message:
        again = self._chance(0.15)
        name = self._random.choice(self._vouchers) if again else f"v{len(self._vouchers)}"
        self._vouchers.append(name)
        return self._command("grant_voucher", voucher_id=name, amount=self._amount(), **fields, **self._expiry())

    def _ad_credit(self) -> Message:
        self._credits.append(f"x{len(self._credits)}")
        name = self._random.choice(self._credits[-2:])
        return self._command("grant_ad_credit", ad_credit_id=name, amount=self._amount(), **self._expiry())

    def _allocate(self) -> Message:
        name = self._random.choice(self._credits[-8:])
        return self._command(
            "allocate_ad_credit", ad_credit_id=name, ad_account_id=self._account(), amount=self._amount()
        )

    def _cash(self) -> Message:
        account = {"ad_account_id": self._account()} if self._chance(0.7) else {}
        return self._command("deposit_cash", amount=self._amount(), **account)

    def _transfer(self) -> Message:
        return self._command(
            "transfer_balance",
            ad_account_id=self._account(),
            direction=self._random.choice(("to_ad_account", "to_business_center")),
            pocket=self._random.choice(("cash", "credit")),
            amount=self._amount(),
        )

    def _campaign_budget(self) -> Message:
        mode = self._random.choice(("daily", "daily", "lifetime", "unlimited"))
        amount = {} if mode == "unlimited" else {"amount": self._amount()}
        campaign = self._random.choice(self._campaigns)
        return self._command(
            "set_campaign_budget", ad_account_id=self._account(), campaign_id=campaign, mode=mode, **amount
        )

    def _account_budget(self) -> Message:
        mode = self._random.choice(("daily", "monthly", "custom", "unlimited"))
        amount = {} if mode == "unlimited" else {"amount": self._random.choice(("5", "20"))}
        return self._command("set_budget", ad_account_id=self._account(), mode=mode, **amount)

    def _command(self, type_: str, **fields: Any) -> Message:
        command = {
            "command_id": self._uuid(),
            "type": type_,
            "business_center_id": "b",
            "issued_at": _time(self._now),
            "actor": {"id": "somebody", "role": "admin"},
        }
        return "command", json.dumps({**command, **fields}).encode()

    # ---- Events -----------------------------------------------------------------------------------------------

    def _spend(self) -> Message:
        age = self._random.choice((0, 0, 0, 0, HOUR, DAY_US, -3 * HOUR, -20 * HOUR, 1 - DAY_US))
        spend = {
            "type": "spend",
            "event_id": self._uuid(),
            "business_center_id": "b",
            "ad_account_id": self._account(),
            "campaign_id": self._random.choice(self._campaigns),
            "amount": self._amount(),
            "currency": "USD",
            "occurred_at": _time(self._now - age),
        }
        self._spends.append(spend)
        return "event", json.dumps(spend).encode()

    def _reversal(self) -> Message:
        """Return a reversal of part of a spend, perhaps of an old one."""
        if not self._spends:
            return self._spend()
        spend = self._random.choice(self._spends[-self._random.choice((20, 500)) :])
        amount = self._random.choice(("0.25", "0.5", "1"))
        ids = {"event_id": self._uuid(), "reverses": spend["event_id"]}
        return "event", json.dumps({**spend, **ids, "type": "reversal", "amount": amount}).encode()

    # ---- Values -----------------------------------------------------------------------------------------------

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _account(self) -> str:
        return self._random.choice(list(ACCOUNTS))

    def _amount(self) -> str:
        return self._random.choice(("0.5", "1", "2", "3", "5", "8"))

    def _expiry(self) -> dict[str, str]:
        """Return an expiry: none, at a midnight of some zone, or in some hours."""
        midnight = (self._now // DAY_US + self._random.choice((1, 2))) * DAY_US
        at = self._random.choice((0, midnight, midnight + 5 * HOUR, midnight + 15 * HOUR, self._now + 3 * HOUR))
        return {"expires_at": _time(at)} if at > self._now else {}

    def _uuid(self) -> str:
        return str(UUID(int=self._random.getrandbits(128)))


def _time(moment: int) -> str:
    whole = datetime.fromtimestamp(moment // 1_000_000, UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{moment % 1_000_000:06d}Z"
