"""Random work for a platform: finance commands and ad spend, valid and invalid. The same seed gives the same work.

The work depends on what was sent before, and never on its outcomes.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from tests.model.forms import rfc3339
from tests.model.model import DAY_US

Message = dict[str, Any]
SECOND_US = 1_000_000
ZONES = ("UTC", "Asia/Tokyo", "America/New_York", "Asia/Kathmandu")
ROLES = ("admin",) * 18 + ("finance_manager",) * 5 + ("system",) * 3 + ("standard", "finance_analyst")
KINDS = (
    {"billing": "monthly_invoicing", "buying_type": "auction"},
    {"billing": "monthly_invoicing", "buying_type": "auction"},
    {"billing": "monthly_invoicing", "buying_type": "auction"},
    {"billing": "prepay", "buying_type": "auction"},
    {"billing": "autopay", "buying_type": "auction"},
    {"billing": "monthly_invoicing", "buying_type": "reservation"},
    {"billing": "monthly_invoicing", "buying_type": "auction", "owned": False},
)
CAMPAIGNS = ("spring", "summer", "autumn")
# The age of a past spend: mostly today, sometimes on a closed day, rarely too old.
AGES_US = (0,) * 12 + (SECOND_US, DAY_US // 3, DAY_US, 2 * DAY_US, 5 * DAY_US, -DAY_US // 3, -20 * 3600 * SECOND_US)
OUT_OF_WINDOW_US = (7 * DAY_US + 3600 * SECOND_US, 30 * DAY_US, -25 * 3600 * SECOND_US)
BAD_AMOUNTS = (
    "0",
    "0.000000",
    "-1",
    "+1",
    "1e3",
    "NaN",
    "1.0000001",
    "1234567890123",
    "01",
    "1.",
    ".5",
    "٣",
    "1,5",
    "",
)


@dataclass(frozen=True)
class Work:
    """One message, and where it goes."""

    kind: str  # "command" or "event"
    message: Message


class Workload:
    """The Business Centers of one seed, and endless work for them."""

    def __init__(self, seed: int, *, centers: int = 5, prefix: str = "") -> None:
        self._random = random.Random(seed)
        self._prefix = prefix
        self.centers = [f"{prefix}bc-{number}" for number in range(centers)]
        self.accounts: dict[str, list[str]] = {center: [] for center in self.centers}
        self._vouchers: dict[str, list[str]] = {center: [] for center in self.centers}
        self._ad_credits: dict[str, list[str]] = {center: [] for center in self.centers}
        self._commands: list[Message] = []
        self._spends: list[Message] = []
        self._events: list[Message] = []
        self._planned: list[Work] = []
        self._number = 0

    @property
    def account_ids(self) -> list[str]:
        """Return the ids of all ad accounts that the work has tried to open."""
        return [account for accounts in self.accounts.values() for account in accounts]

    def opening(self, now_us: int) -> list[Work]:
        """Return the work that opens the Business Centers, with accounts and money. The last has no finance roles."""
        return [Work("command", each) for center in self.centers for each in self._open(center, now_us)]

    def _open(self, center: str, now_us: int) -> list[Message]:
        roles = center != self.centers[-1]
        zone = self._random.choice(ZONES)
        opening = self._command(center, now_us, "open_business_center", "admin", currency="USD", time_zone=zone)
        opening["finance_roles"] = roles
        commands = [opening]
        if self._random.random() < 0.5:
            commands.append(self._command(center, now_us, "enable_automatic_allocation", "admin"))
        commands += [self._open_account(center, now_us, "admin") for _ in range(4)]
        commands.append(self._command(center, now_us, "deposit_cash", "admin", amount=self._large()))
        commands.append(self._command(center, now_us, "set_credit_line", "admin", limit="400"))
        for account in self.accounts[center][:3]:
            commands.append(
                self._command(center, now_us, "deposit_cash", "admin", amount=self._large(), ad_account_id=account)
            )
        return commands

    def next(self, now_us: int) -> Work:
        """Return the next piece of work."""
        if self._planned:
            return self._planned.pop(0)
        if self._random.random() < 0.015:
            self._planned = self._random.choice((self._many_changes, self._short_lived_voucher))(now_us)
        if self._random.random() < 0.3:
            return Work("command", self._any_command(now_us))
        return Work("event", self.next_event(now_us))

    # Work that rarely happens by chance

    def _many_changes(self, now_us: int) -> list[Work]:
        """Return more changes of a budget than a day allows."""
        center = self.centers[0]
        budget = {"ad_account_id": self.accounts[center][0], "mode": "custom"}
        make = [
            self._command(center, now_us, "set_budget", "admin", amount=str(50 + number), **budget)
            for number in range(12)
        ]
        return [Work("command", each) for each in make]

    def _short_lived_voucher(self, now_us: int) -> list[Work]:
        """Return a voucher that pays and expires soon. A spend that it paid may be reversed after that."""
        center = self._random.choice(self.centers)
        account = self.accounts[center][0]
        fields = {"voucher_id": self._name("voucher"), "amount": "40", "ad_account_id": account}
        fields["expires_at"] = rfc3339(now_us + 2 * 3600 * SECOND_US)
        deposit = self._command(center, now_us, "deposit_cash", "admin", amount="50")
        grant = self._command(center, now_us, "grant_voucher", "admin", **fields)
        spends = [{**self._spend(now_us), "business_center_id": center, "ad_account_id": account} for _ in range(4)]
        self._spends += spends * 3
        return [Work("command", deposit), Work("command", grant), *(Work("event", spend) for spend in spends)]

    # Amounts and ids

    def _uuid(self) -> str:
        return str(UUID(int=self._random.getrandbits(128), version=4))

    def _name(self, kind: str) -> str:
        self._number += 1
        return f"{self._prefix}{kind}-{self._number}"

    def _small(self) -> str:
        choices = (
            "0.000001",
            "0.5",
            "1",
            "3.000000",
            f"{self._random.randrange(1, 20_000_000) / 1_000_000:.6f}",
            "12.34",
        )
        return self._random.choice(choices)

    def _large(self) -> str:
        return self._random.choice(
            ("5", "20", "50.25", "100", f"{self._random.randrange(1, 200_000_000) / 1_000_000:.6f}")
        )

    def _account(self, center: str) -> str:
        if self._random.random() < 0.03:
            return f"{self._prefix}nobody"
        return self._random.choice(self.accounts[center] or [f"{self._prefix}nobody"])

    # Commands

    def _command(self, center: str, now_us: int, type_: str, role: str, **fields: Any) -> Message:
        command = {
            "command_id": self._uuid(),
            "type": type_,
            "business_center_id": center,
            "issued_at": rfc3339(now_us),
            "actor": {"id": "somebody", "role": role},
            **fields,
        }
        self._commands.append(command)
        return command

    def _any_command(self, now_us: int) -> Message:
        if self._random.random() < 0.05:
            return self._again(self._random.choice(self._commands))
        center = self._random.choice(self.centers)
        if self._random.random() < 0.02:
            center = f"{self._prefix}nowhere"
            return self._command(center, now_us, "deposit_cash", "admin", amount="1")
        make = self._random.choice(self._makers())
        return make(center, now_us, self._random.choice(ROLES))

    def _makers(self) -> list[Callable[[str, int, str], Message]]:
        return [
            *[self._deposit] * 5,
            *[self._set_budget] * 5,
            *[self._set_campaign_budget] * 4,
            *[self._transfer] * 4,
            *[self._grant_voucher] * 4,
            *[self._grant_ad_credit] * 3,
            *[self._allocate] * 6,
            *[self._set_credit_line] * 2,
            *[self._repay] * 2,
            *[self._reset_budget] * 2,
            self._set_largest_spend,
            self._enable,
            self._disable,
            self._reopen,
            self._open_account,
            self._break,
        ]

    def _again(self, command: Message) -> Message:
        """Return the command again, or another command with its id."""
        changed = {"actor": {"id": "somebody-else", "role": "admin"}} if self._random.random() < 0.3 else {}
        return {**command, **changed, "command_id": command["command_id"].upper()}

    def _deposit(self, center: str, now_us: int, role: str) -> Message:
        account = {"ad_account_id": self._account(center)} if self._random.random() < 0.6 else {}
        return self._command(center, now_us, "deposit_cash", role, amount=self._large(), **account)

    def _set_budget(self, center: str, now_us: int, role: str) -> Message:
        mode = self._random.choice(("daily", "daily", "monthly", "custom", "custom", "unlimited"))
        amount = {} if mode == "unlimited" else {"amount": self._large()}
        account = self._account(center)
        return self._command(center, now_us, "set_budget", role, ad_account_id=account, mode=mode, **amount)

    def _set_campaign_budget(self, center: str, now_us: int, role: str) -> Message:
        mode = self._random.choice(("daily", "lifetime", "lifetime", "unlimited"))
        amount = {} if mode == "unlimited" else {"amount": self._large()}
        names = {"ad_account_id": self._account(center), "campaign_id": self._random.choice(CAMPAIGNS)}
        return self._command(center, now_us, "set_campaign_budget", role, mode=mode, **names, **amount)

    def _transfer(self, center: str, now_us: int, role: str) -> Message:
        fields = {
            "ad_account_id": self._account(center),
            "direction": self._random.choice(("to_ad_account", "to_business_center")),
            "pocket": self._random.choice(("cash", "credit")),
            "amount": self._large(),
        }
        return self._command(center, now_us, "transfer_balance", role, **fields)

    def _grant_voucher(self, center: str, now_us: int, role: str) -> Message:
        fields: Message = {"voucher_id": self._name("voucher"), "amount": self._large(), **self._expiry(now_us)}
        if self._vouchers[center] and self._random.random() < 0.1:
            fields["voucher_id"] = self._random.choice(self._vouchers[center])
        if self._random.random() < 0.7:
            fields["ad_account_id"] = self._account(center)
        if self._random.random() < 0.35:
            fields["campaign_ids"] = self._random.sample(CAMPAIGNS, self._random.randint(1, 2))
        self._vouchers[center].append(fields["voucher_id"])
        return self._command(center, now_us, "grant_voucher", role, **fields)

    def _expiry(self, now_us: int) -> Message:
        """Return an expiry hours or days from now, or in the past: never close to the moment of the decision."""
        hours = self._random.choice((None, None, 2, 5, 5, 30, 75, -1))
        return {} if hours is None else {"expires_at": rfc3339(now_us + hours * 3600 * SECOND_US)}

    def _grant_ad_credit(self, center: str, now_us: int, role: str) -> Message:
        name = self._name("credit")
        self._ad_credits[center].append(name)
        fields = {"ad_credit_id": name, "amount": self._large(), **self._expiry(now_us)}
        return self._command(center, now_us, "grant_ad_credit", role, **fields)

    def _allocate(self, center: str, now_us: int, role: str) -> Message:
        name = self._random.choice(self._ad_credits[center] or ["none"])
        fields = {"ad_credit_id": name, "ad_account_id": self._account(center), "amount": self._small()}
        return self._command(center, now_us, "allocate_ad_credit", role, **fields)

    def _set_credit_line(self, center: str, now_us: int, role: str) -> Message:
        limit = self._random.choice(("0", "100", "250", "400", "600.5"))
        return self._command(center, now_us, "set_credit_line", role, limit=limit)

    def _repay(self, center: str, now_us: int, role: str) -> Message:
        return self._command(center, now_us, "repay_credit", role, amount=self._small())

    def _reset_budget(self, center: str, now_us: int, role: str) -> Message:
        return self._command(center, now_us, "reset_budget", role, ad_account_id=self._account(center))

    def _set_largest_spend(self, center: str, now_us: int, role: str) -> Message:
        amount = self._random.choice(({}, {"amount": "12"}, {"amount": "3"}, {"amount": "19.999999"}))
        return self._command(center, now_us, "set_largest_spend", role, **amount)

    def _enable(self, center: str, now_us: int, role: str) -> Message:
        return self._command(center, now_us, "enable_automatic_allocation", role)

    def _disable(self, center: str, now_us: int, role: str) -> Message:
        return self._command(center, now_us, "disable_automatic_allocation", role)

    def _reopen(self, center: str, now_us: int, role: str) -> Message:
        zone = self._random.choice((*ZONES, "Mars/Olympus"))
        return self._command(center, now_us, "open_business_center", role, currency="USD", time_zone=zone)

    def _open_account(self, center: str, now_us: int, role: str) -> Message:
        name = self._name("account")
        if self.account_ids and self._random.random() < 0.1:
            name = self._random.choice(self.account_ids)
        elif role in ("admin", "system"):
            self.accounts[center].append(name)
        fields = {"ad_account_id": name, "time_zone": self._random.choice(ZONES), **self._random.choice(KINDS)}
        return self._command(center, now_us, "open_ad_account", role, **fields)

    def _break(self, center: str, now_us: int, role: str) -> Message:
        """Return a command that is invalid by itself."""
        account = {"ad_account_id": self._account(center)}
        type_, fields = self._random.choice(
            (
                ("deposit_cash", {"amount": "0"}),
                ("set_budget", {**account, "mode": "daily"}),
                ("set_budget", {**account, "mode": "custom", "amount": "0.000000"}),
                ("set_campaign_budget", {**account, "campaign_id": "spring", "mode": "lifetime"}),
                ("grant_voucher", {"voucher_id": "v", "amount": "1", "campaign_ids": ["spring"]}),
                ("open_ad_account", {**account, **KINDS[0], "time_zone": "Nowhere"}),
                ("repay_credit", {"amount": "999999999"}),
                ("set_largest_spend", {"amount": "0"}),
            )
        )
        return self._command(center, now_us, type_, role, **fields)

    # Events

    def next_event(self, now_us: int) -> Message:
        """Return the next spend or reversal: a new, a repeated or a spoiled one."""
        choice = self._random.random()
        if choice < 0.72 or not self._spends or not self._events:
            event = self._spend(now_us)
        elif choice < 0.88:
            event = self._reversal(now_us)
        elif choice < 0.94:
            event = self._random.choice(self._events)
        else:
            event = self._spoil(self._random.choice(self._events), now_us)
        self._events.append(event)
        return event

    def _spend(self, now_us: int) -> Message:
        center = self._random.choice(self.centers)
        age_us = self._random.choice(AGES_US)
        spend = {
            "type": "spend",
            "event_id": self._uuid(),
            "business_center_id": center,
            "ad_account_id": self._account(center),
            "campaign_id": self._random.choice(CAMPAIGNS),
            "amount": self._small(),
            "currency": "USD",
            "occurred_at": rfc3339(now_us - age_us),
        }
        self._spends.append(spend)
        return spend

    def _reversal(self, now_us: int) -> Message:
        spend = self._random.choice(self._spends[-60:] if self._random.random() < 0.4 else self._spends)
        amount = self._random.choice((spend["amount"], spend["amount"], "0.3", "1"))
        spoiled = self._random.choice(({},) * 12 + ({"campaign_id": "winter"}, {"reverses": self._uuid()}))
        reversal = {"type": "reversal", "event_id": self._uuid(), "reverses": spend["event_id"], "amount": amount}
        return {**spend, **reversal, "occurred_at": rfc3339(now_us), "reason": "invalid_traffic", **spoiled}

    def _spoil(self, event: Message, now_us: int) -> Message:
        """Return an event with an error, under its own id (mostly a conflict) or under a new one."""
        spoiled = self._random.choice(
            (
                {"amount": "7.77"},
                {"currency": "EUR"},
                {"currency": "dollars"},
                {"amount": self._random.choice(BAD_AMOUNTS)},
                {"business_center_id": f"{self._prefix}nowhere"},
                {"business_center_id": self._random.choice(self.centers)},
                {"type": "refund"},
                {"occurred_at": "2027-03-10 12:00:00"},
                {"occurred_at": rfc3339(now_us - self._random.choice(OUT_OF_WINDOW_US))},
                {"campaign_id": "no spaces allowed"},
            )
        )
        renewed = {"event_id": self._uuid()} if self._random.random() < 0.5 else {}
        return {**event, **spoiled, **renewed}
