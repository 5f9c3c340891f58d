"""Sparse work over months: runs of days with spend, then weeks without; late, early and reversed spends."""

import random
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from tests.model.forms import rfc3339
from tests.model.model import DAY_US
from tests.model.workload import Work

HOUR_US = DAY_US // 24
ZONES = ("UTC", "Asia/Tokyo", "America/St_Johns", "Pacific/Kiritimati", "America/Sao_Paulo", "Africa/Cairo")
AMOUNTS = ("1", "2.5", "5", "7", "20")
BUDGETS = ("5", "8", "12", "40", "100")
WINDOWS = (1, 7, 30, 365, 365)


class Months:
    """The work of one Business Center over fourteen months. The same seed gives the same work."""

    def __init__(self, seed: int, start_us: int) -> None:
        self._random = random.Random(seed)
        self._now = start_us
        self._end = start_us + 425 * DAY_US
        self._spends: list[dict[str, Any]] = []
        self._accounts = [f"account-{number}" for number in range(3)]

    def __iter__(self) -> Iterator[tuple[int, Work]]:
        """Yield moments (µs) in order, each with its messages."""
        yield from ((self._now, work) for work in self._opening())
        while self._now < self._end:
            self._now += self._gap()
            for _ in range(self._random.choice((1, 1, 2, 3))):
                yield self._now, self._next()
                self._now += self._random.choice((0, 1000, 5 * HOUR_US))

    def _gap(self) -> int:
        days = 1 if self._random.random() < 0.93 else self._random.choice((9, 12, 20, 45))
        return days * DAY_US - self._random.choice((0, 0, 5, 12)) * HOUR_US

    def _opening(self) -> list[Work]:
        pick = self._random.choice
        opened = self.command("open_business_center", currency="USD", time_zone=pick(ZONES), finance_roles=True)
        work = [opened]
        for account in self._accounts:
            kind = {"billing": "monthly_invoicing", "buying_type": "auction", "time_zone": pick(ZONES)}
            work.append(self.command("open_ad_account", ad_account_id=account, **kind))
            work.append(self.command("deposit_cash", ad_account_id=account, amount=pick(("300", "100000"))))
            work.append(self._set_budget())
        return work

    def _next(self) -> Work:
        choice = self._random.random()
        if choice < 0.18:
            return self._random.choice((self._set_budget, self._set_budget, self._set_campaign_budget, self._reset))()
        if choice < 0.28 and self._spends:
            return self._reversal()
        return self.spend(self._age())

    def _age(self) -> int:
        """Return the age of a spend: mostly none, else hours ahead, days, weeks, or as long as a window may be."""
        if self._random.random() < 0.5:
            return 0
        days = self._random.choice((-0.8, -0.3, 0.3, 1, 3, 6.9, 15, 29, 60, 89, 200, 364))
        return int(days * DAY_US)

    def spend(self, age_us: int) -> Work:
        """Return a spend of this age."""
        spend = {
            "type": "spend",
            "event_id": self._uuid(),
            "business_center_id": "center",
            "ad_account_id": self._random.choice(self._accounts),
            "campaign_id": self._random.choice(("spring", "summer")),
            "amount": self._random.choice(AMOUNTS),
            "currency": "USD",
            "occurred_at": rfc3339(self._now - age_us),
        }
        self._spends.append(spend)
        return Work("event", spend)

    def _reversal(self) -> Work:
        spend = self._random.choice(self._spends[-20:] if self._random.random() < 0.5 else self._spends)
        reversal = {"type": "reversal", "event_id": self._uuid(), "reverses": spend["event_id"]}
        amount = self._random.choice((spend["amount"], "1", "0.5"))
        return Work("event", {**spend, **reversal, "amount": amount, "occurred_at": rfc3339(self._now)})

    def _set_budget(self) -> Work:
        mode = self._random.choice(("daily", "daily", "monthly", "monthly", "custom", "unlimited"))
        return self._budget("set_budget", mode)

    def _set_campaign_budget(self) -> Work:
        mode = self._random.choice(("daily", "daily", "lifetime", "unlimited"))
        return self._budget("set_campaign_budget", mode, campaign_id=self._random.choice(("spring", "summer")))

    def _budget(self, type_: str, mode: str, **fields: str) -> Work:
        amount = {} if mode == "unlimited" else {"amount": self._random.choice(BUDGETS)}
        return self.command(type_, ad_account_id=self._random.choice(self._accounts), mode=mode, **amount, **fields)

    def _reset(self) -> Work:
        return self.command("reset_budget", ad_account_id=self._random.choice(self._accounts))

    def command(self, type_: str, **fields: Any) -> Work:
        """Return a command that is issued now."""
        head = {"command_id": self._uuid(), "type": type_, "business_center_id": "center"}
        actor = {"id": "somebody", "role": "admin"}
        return Work("command", {**head, "issued_at": rfc3339(self._now), "actor": actor, **fields})

    def _uuid(self) -> str:
        return str(UUID(int=self._random.getrandbits(128), version=4))
