"""Budgets: what is left for a spend, and what is left now (domain page, section 4)."""

from dataclasses import dataclass
from datetime import date, timedelta

from tests.model.days import day_of, first_of_month, start_of_day
from tests.model.state import AdAccount, Campaign, Setting, Spend


@dataclass
class Level:
    """One budget of an ad account or of a campaign: its settings, and what its periods have counted, in micros."""

    settings: list[Setting]
    zone: str
    by_day: dict[date, int]
    all_counted: int  # custom: since its start; lifetime: all it ever spent

    def counted(self, mode: str, day: date) -> int:
        """Return what the day's period in this mode has counted."""
        if mode == "daily":
            return self.by_day.get(day, 0)
        if mode == "monthly":
            month = first_of_month(day)
            return sum(spent for each, spent in self.by_day.items() if first_of_month(each) == month)
        return self.all_counted

    def room(self, setting: Setting, day: date) -> int | None:
        """Return what a setting leaves in the day's period. None means no limit."""
        if setting.mode == "unlimited":
            return None
        return max(0, setting.amount - self.counted(setting.mode, day))

    def at_end_of(self, day: date) -> Setting:
        """Return the setting at the end of a day (4.2)."""
        end = start_of_day(day + timedelta(days=1), self.zone)
        return [each for each in self.settings if each.since < end][-1]

    def remaining(self, now: int) -> int | None:
        """Return what is left in the present period."""
        return self.room(self.settings[-1], day_of(now, self.zone))

    def room_for(self, occurred_at: int, now: int) -> int | None:
        """Return what is left for a spend in its own period, open or closed (4.2)."""
        day = day_of(occurred_at, self.zone)
        setting, is_open = self._judge(day, now)
        return None if setting.mode == "custom" and not is_open else self.room(setting, day)

    def period_of(self, occurred_at: int, now: int, custom_started: int) -> date:
        """Return the first day of the period that counts a spend."""
        day = day_of(occurred_at, self.zone)
        setting, is_open = self._judge(day, now)
        if setting.mode == "custom" and is_open:
            return day_of(custom_started, self.zone)
        return first_of_month(day) if setting.mode == "monthly" else day

    def _judge(self, day: date, now: int) -> tuple[Setting, bool]:
        present = self.settings[-1]
        if self._is_open(present.mode, day, day_of(now, self.zone)):
            return present, True
        return self.at_end_of(day), False

    @staticmethod
    def _is_open(mode: str, day: date, today: date) -> bool:
        if mode in ("custom", "lifetime"):
            return True
        if mode == "monthly":
            return first_of_month(day) >= first_of_month(today)
        return day >= today


def account_level(account: AdAccount) -> Level:
    """Return the budget of an ad account."""
    return Level(account.settings, account.time_zone, account.by_day, account.custom_spent)


def campaign_level(account: AdAccount, campaign: Campaign) -> Level:
    """Return the budget of a campaign. Its days are those of its account."""
    return Level(campaign.settings, account.time_zone, campaign.by_day, campaign.lifetime)


def set_account_budget(account: AdAccount, mode: str, amount: int, now: int) -> None:
    """Set an account's budget. A custom one begins to count, unless it was custom before (4.5)."""
    if mode == "custom" and account.settings[-1].mode != "custom":
        restart_custom(account, now)
    account.settings.append(Setting(now, mode, amount))


def restart_custom(account: AdAccount, now: int) -> None:
    """Start the custom budget again, with nothing counted."""
    account.custom_run += 1
    account.custom_started = now
    account.custom_spent = 0


def count(account: AdAccount, campaign: Campaign, spend: Spend, billed: int) -> None:
    """Count what was billed of a spend, or returned if below zero, in the budgets that count the spend."""
    account.by_day[spend.day] += billed
    campaign.by_day[spend.day] += billed
    if spend.custom_run is not None and spend.custom_run == account.custom_run:
        account.custom_spent += billed
