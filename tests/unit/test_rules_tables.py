"""Rules as tables of cases: the state, the input, and the expected entries."""

from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from shared.contracts.zones import is_zone
from shared.rules.budgets import Budget
from shared.rules.calendar import date_text
from shared.rules.command_types import COMMANDS
from shared.rules.events import Event
from shared.rules.money import format_micros, parse_amount
from shared.rules.pauses import cause_names
from shared.rules.policy import STANDARD, Policy, policy_of
from shared.rules.roles import may
from shared.rules.shard import DAY_US, Shard
from shared.rules.vocabulary import ROLES
from tests.zones import INSTALLED
from tests.zones import zone as zone_of

NOON = int(datetime(2027, 3, 10, 12, tzinfo=UTC).timestamp()) * 1_000_000
HOUR = 3_600_000_000
ONE = 1_000_000
LARGEST_AMOUNT = 10**12 * ONE


class Book:
    """A shard with one BC `b` and one account `a`, with short methods for its inputs."""

    def __init__(self, policy: Policy = STANDARD, billing: str = "monthly_invoicing") -> None:
        self.rules = Shard(policy, zones=INSTALLED)
        self.rules.begin(NOON, policy)
        self.do("open_business_center", currency="USD", time_zone="UTC", finance_roles=True)
        self.open("a", billing=billing)

    def do(self, type: str, role: str = "admin", **fields: Any) -> str | None:
        command = COMMANDS[type](**{"business_center_id": "b", "role": role, **fields})
        refused = self.rules.command(command, uuid4().bytes, {"type": type})
        return refused.code if refused else None

    def open(self, id: str, billing: str = "monthly_invoicing", zone: str = "UTC") -> str | None:
        fields: dict[str, Any] = {"billing": billing, "buying_type": "auction", "time_zone": zone, "owned": True}
        return self.do("open_ad_account", ad_account_id=id, **fields)

    def event(self, amount: int, campaign: str = "c", at: int = NOON, id: int | None = None, **other: Any) -> Event:
        event_id = UUID(int=id).bytes if id is not None else uuid4().bytes
        values = {"center": "b", "account": "a", "currency": "USD", "reverses": None, **other}
        return (
            event_id,
            values["center"],
            values["account"],
            campaign,
            amount,
            values["currency"],
            at,
            values["reverses"],
            None,
        )

    def spend(self, amount: int, campaign: str = "c", at: int = NOON) -> list[tuple[str, int | str | None]]:
        """Return what a spend writes: (pocket, amount) of debits and draws, (cause, amount) of overdelivery."""
        before = len(self.rules.entries)
        assert self.rules.event(self.event(amount, campaign, at))[0] == "charged"
        return [
            (line.grant_id or line.pocket or line.cause or "", change)
            for line, change, *_ in self.rules.entries[before:]
            if change is not None
        ]

    def later(self, now: int) -> None:
        self.rules.begin(now, self.rules.policy)

    @property
    def causes(self) -> list[str]:
        return cause_names(self.rules.accounts["a"].causes)


@pytest.mark.parametrize(
    ("text", "micros"),
    [("0", 0), ("1", ONE), ("0.000001", 1), ("12.34", 12_340_000), ("999999999999.999999", LARGEST_AMOUNT - 1)],
)
def test_amounts_are_parsed_and_shown_with_six_places(text: str, micros: int) -> None:
    assert parse_amount(text) == micros
    assert parse_amount(format_micros(micros)) == micros


def test_a_negative_amount_shows_its_minus_and_six_places() -> None:
    assert format_micros(-1) == "-0.000001"
    assert format_micros(-ONE) == "-1.000000"


@pytest.mark.parametrize(
    ("amount", "paid"),
    [
        (1, [("v", -1)]),
        (10, [("v", -10)]),
        (25, [("v", -10), ("x", -15)]),
        (40, [("v", -10), ("x", -20), ("cash", -10)]),
        (100, [("v", -10), ("x", -20), ("cash", -30), ("credit", -40)]),
        (101, [("v", -10), ("x", -20), ("cash", -30), ("credit", -40), ("ad_account_balance", 1)]),
    ],
)
def test_a_spend_draws_on_the_pockets_in_waterfall_order(amount: int, paid: list[tuple[str, int]]) -> None:
    book = Book()
    book.do("deposit_cash", amount=30, ad_account_id="a")
    book.do("grant_voucher", voucher_id="v", amount=10, ad_account_id="a")
    book.do("grant_ad_credit", ad_credit_id="x", amount=50)
    book.do("allocate_ad_credit", ad_credit_id="x", ad_account_id="a", amount=20)
    book.do("set_credit_line", limit=40)
    book.do("transfer_balance", ad_account_id="a", direction="to_ad_account", pocket="credit", amount=40)
    assert book.spend(amount) == paid


@pytest.mark.parametrize(
    ("amount", "paid"),
    [
        (5, [("own", -5)]),
        (12, [("own", -5), ("shared", -7)]),
        (40, [("own", -5), ("shared", -10), ("cash", -20), ("credit_line", -5)]),
        (70, [("own", -5), ("shared", -10), ("cash", -20), ("credit_line", -30), ("business_center_balance", 5)]),
    ],
)
def test_a_participants_spend_draws_on_the_pockets_in_waterfall_order(amount: int, paid: list[tuple[str, int]]) -> None:
    book = Book()
    book.do("set_budget", ad_account_id="a", mode="custom", amount=1000)
    book.do("enable_automatic_allocation")
    book.do("grant_voucher", voucher_id="own", amount=5, ad_account_id="a")
    book.do("grant_voucher", voucher_id="shared", amount=10)
    book.do("deposit_cash", amount=20)
    book.do("set_credit_line", limit=30)
    assert book.spend(amount) == paid


def test_grants_pay_in_order_of_expiry_then_age() -> None:
    book = Book()
    for name, expires_at in (("never", None), ("late", NOON + 9 * DAY_US), ("soon", NOON + DAY_US), ("young", None)):
        book.do("grant_voucher", voucher_id=name, amount=1, ad_account_id="a", expires_at=expires_at)
    assert [name for name, _ in book.spend(4)] == ["soon", "late", "never", "young"]


def test_a_pocket_outside_the_policy_does_not_pay() -> None:
    policy = Policy("no-shared-vouchers", business_center=("cash", "credit_line"))
    book = Book(policy)
    book.do("set_budget", ad_account_id="a", mode="custom", amount=1000)
    book.do("enable_automatic_allocation")
    book.do("grant_voucher", voucher_id="v", amount=10)
    assert book.causes == ["business_center_balance"]
    assert book.spend(3) == [("business_center_balance", 3)]
    book.do("deposit_cash", amount=2)
    assert book.spend(3) == [("cash", -2), ("business_center_balance", 1)]


def test_a_new_policy_pauses_and_resumes_at_once() -> None:
    book = Book()
    book.do("set_budget", ad_account_id="a", mode="custom", amount=1000)
    book.do("enable_automatic_allocation")
    book.do("grant_voucher", voucher_id="v", amount=10)
    assert book.causes == []
    book.rules.begin(NOON, Policy("2", business_center=("cash",)))
    assert [line.kind for line, *_ in book.rules.entries] == ["pause"]
    book.rules.begin(NOON, Policy("3"))
    assert [line.kind for line, *_ in book.rules.entries] == ["resume"]


@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        {"version": ""},
        {"version": "1", "ad_account": ["cash"]},
        {"version": "1", "ad_account": ["credit_line"], "business_center": []},
        {"version": "1", "ad_account": ["cash", "cash"], "business_center": []},
        *({**STANDARD.content(), name: {"roles": []}} for name in ("topics", "Topic", "topic ", "rules")),
    ],
)
def test_content_that_is_not_a_policy_is_refused(content: Any) -> None:
    with pytest.raises(ValueError, match=r"version|pocket|list"):
        policy_of(content)


def test_a_written_policy_is_read_back_unchanged() -> None:
    assert policy_of(STANDARD.content()) == STANDARD


def test_due_timers_fire_before_a_later_input() -> None:
    book = Book()
    book.do("set_budget", ad_account_id="a", mode="daily", amount=5)
    book.do("grant_voucher", voucher_id="v", amount=5, ad_account_id="a", expires_at=NOON + HOUR)
    book.do("deposit_cash", amount=9, ad_account_id="a")
    assert book.spend(5) == [("v", -5)]
    assert book.causes == ["ad_account_budget"]
    book.do("grant_voucher", voucher_id="w", amount=5, ad_account_id="a", expires_at=NOON + 12 * HOUR)
    book.later(NOON + 30 * HOUR)
    written = [(line.kind, at) for line, _, at, *_ in book.rules.entries]
    assert written == [("expiry", NOON + 12 * HOUR), ("resume", NOON + 12 * HOUR)]
    assert book.spend(1, at=NOON + 30 * HOUR) == [("cash", -1)]


@pytest.mark.parametrize(
    ("direction", "pocket", "code"),
    [
        ("to_ad_account", "cash", "not_eligible"),
        ("to_ad_account", "credit", "not_eligible"),
        ("to_business_center", "cash", None),
        ("to_business_center", "credit", "insufficient_funds"),
    ],
)
def test_a_participating_account_transfers_only_what_it_may(direction: str, pocket: str, code: str | None) -> None:
    book = Book()
    book.do("enable_automatic_allocation")
    book.do("deposit_cash", amount=10)
    book.do("deposit_cash", amount=10, ad_account_id="a")
    found = book.do("transfer_balance", ad_account_id="a", direction=direction, pocket=pocket, amount=5)
    assert found == code


def test_a_prepay_account_cannot_hold_credit() -> None:
    book = Book(billing="prepay")
    book.do("set_credit_line", limit=10)
    for direction in ("to_ad_account", "to_business_center"):
        transfer: dict[str, Any] = {"ad_account_id": "a", "direction": direction, "pocket": "credit", "amount": 5}
        assert book.do("transfer_balance", **transfer) == "not_eligible"


TODAY = date(2027, 3, 10).toordinal()


def budget_of(*settings: tuple[int, str, int | None], spent: dict[int, int] | None = None) -> Budget:
    budget = Budget()
    for day, mode, amount in settings:
        budget.set(day, mode, amount)
    for day, amount in (spent or {}).items():
        budget.count(day, amount)
    if budget.mode == "custom":  # It began after all of these spends.
        budget.start_counting(0, TODAY, 0)
    return budget


@pytest.mark.parametrize(
    ("settings", "spent", "day", "room"),
    [
        ([(TODAY, "daily", 100)], {TODAY: 60}, TODAY, 40),
        ([(TODAY, "daily", 100)], {TODAY: 160}, TODAY, 0),
        ([(TODAY, "daily", 100)], {}, TODAY - 1, None),
        ([(TODAY - 3, "daily", 100)], {TODAY - 1: 95, TODAY: 100}, TODAY - 1, 5),
        ([(TODAY - 3, "daily", 100), (TODAY, "daily", 10)], {TODAY - 1: 95}, TODAY - 1, 5),
        ([(TODAY - 3, "daily", 100), (TODAY, "daily", 10)], {}, TODAY + 1, 10),
        ([(TODAY - 3, "daily", 100), (TODAY, "unlimited", None)], {TODAY - 1: 95}, TODAY - 1, 5),
        ([(TODAY - 3, "daily", 100), (TODAY, "unlimited", None)], {TODAY: 95}, TODAY, None),
        ([(TODAY - 3, "daily", 100), (TODAY, "monthly", 600)], {TODAY - 1: 99}, TODAY - 1, 501),
        ([(TODAY - 3, "monthly", 600), (TODAY, "daily", 10)], {TODAY - 2: 99, TODAY: 1}, TODAY - 1, 500),
        ([(TODAY - 20, "monthly", 600)], {TODAY - 15: 99}, TODAY - 12, 501),
        ([(TODAY - 3, "custom", 600), (TODAY, "daily", 10)], {}, TODAY - 1, None),
        ([(TODAY - 3, "daily", 10), (TODAY, "custom", 600)], {TODAY - 1: 10}, TODAY - 1, 600),
        ([(TODAY - 3, "lifetime", 7), (TODAY, "daily", 10)], {}, TODAY - 1, 7),
        ([(TODAY - 1, "daily", 5), (TODAY - 1, "daily", 8)], {}, TODAY - 1, 8),
    ],
)
def test_each_day_is_bounded_by_the_setting_in_force(
    settings: list[tuple[int, str, int | None]], spent: dict[int, int], day: int, room: int | None
) -> None:
    assert budget_of(*settings, spent=spent).room(day, TODAY) == room


@pytest.mark.parametrize(
    ("zone", "day", "begins"),
    [
        ("UTC", date(2027, 3, 10), "2027-03-10T00:00:00+00:00"),
        ("Asia/Tokyo", date(2027, 3, 10), "2027-03-09T15:00:00+00:00"),
        ("America/New_York", date(2027, 3, 15), "2027-03-15T04:00:00+00:00"),
        ("Asia/Kathmandu", date(2027, 3, 10), "2027-03-09T18:15:00+00:00"),
        # The clock jumps over midnight: the day begins at one o'clock.
        ("Africa/Cairo", date(2024, 4, 26), "2024-04-25T22:00:00+00:00"),
        ("America/Sao_Paulo", date(2018, 11, 4), "2018-11-04T03:00:00+00:00"),
        # Midnight comes twice: the first one counts.
        ("America/Sao_Paulo", date(2019, 2, 17), "2019-02-17T03:00:00+00:00"),
        ("America/Havana", date(2024, 11, 3), "2024-11-03T04:00:00+00:00"),
    ],
)
def test_days_begin_at_their_first_instant(zone: str, day: date, begins: str) -> None:
    start = zone_of(zone).start(day.toordinal())
    assert start == int(datetime.fromisoformat(begins).timestamp()) * 1_000_000
    assert zone_of(zone).day(start) == day.toordinal()
    assert zone_of(zone).day(start - 1) == day.toordinal() - 1


@pytest.mark.parametrize(("day", "hours"), [(date(2027, 3, 14), 23), (date(2027, 11, 7), 25), (date(2027, 3, 10), 24)])
def test_days_may_have_23_and_25_hours(day: date, hours: int) -> None:
    zone = zone_of("America/New_York")
    assert zone.start(day.toordinal() + 1) - zone.start(day.toordinal()) == hours * HOUR


def test_the_current_day_follows_ledger_time() -> None:
    zone = zone_of("Asia/Tokyo")
    zone.advance(NOON)
    assert date_text(zone.today) == "2027-03-10"
    zone.advance(NOON + 3 * HOUR - 1)
    assert date_text(zone.today) == "2027-03-10"
    zone.advance(NOON + 3 * HOUR)
    assert date_text(zone.today) == "2027-03-11"


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "UTC\0", "Europe"])
def test_names_that_are_not_time_zones_are_refused(name: str) -> None:
    assert not is_zone(name)


@pytest.mark.parametrize(
    ("command", "with_roles", "without_roles"),
    [
        ("set_budget", {"admin", "finance_manager"}, {"admin"}),
        ("reset_budget", {"admin", "finance_manager"}, {"admin"}),
        ("set_campaign_budget", {"admin", "finance_manager", "standard"}, {"admin", "standard"}),
        ("deposit_cash", {"admin", "finance_manager", "system"}, {"admin", "system"}),
        ("open_business_center", {"admin", "finance_manager", "system"}, {"admin", "system"}),
        ("enable_automatic_allocation", {"admin", "finance_manager", "system"}, {"admin", "system"}),
    ],
)
def test_each_role_may_give_only_its_commands(command: str, with_roles: set[str], without_roles: set[str]) -> None:
    assert {role for role in ROLES if may(role, command, finance_roles=True)} == with_roles
    assert {role for role in ROLES if may(role, command, finance_roles=False)} == without_roles


def test_an_unknown_role_may_give_no_command() -> None:
    assert not may("treasurer", "deposit_cash", finance_roles=True)


def test_the_first_failed_check_decides() -> None:
    book = Book()
    book.do("deposit_cash", amount=100, ad_account_id="a")
    assert book.rules.event(book.event(5, id=1))[0] == "charged"
    first = UUID(int=1).bytes
    too_old, ahead = NOON - 7 * DAY_US - 1, NOON + DAY_US + 1
    cases = [
        (book.event(6, center="x", account="y", currency="EUR", at=too_old, id=1), "unknown_business_center"),
        (book.event(6, account="y", currency="EUR", at=too_old, id=1), "unknown_ad_account"),
        (book.event(6, currency="EUR", at=too_old, id=1), "currency_mismatch"),
        (book.event(6, at=too_old, id=1), "too_old"),
        (book.event(6, at=ahead, id=1), "too_far_ahead"),
        (book.event(6, id=1), "content_conflict"),
        (book.event(5, id=1), "duplicate"),
        (book.event(6, reverses=UUID(int=9).bytes), "unknown_reversal"),
        (book.event(6, campaign="other", reverses=first), "reversal_mismatch"),
        (book.event(6, reverses=first), "reversal_exceeds_spend"),
        (book.event(5, reverses=first), "charged"),
        (book.event(1, reverses=first), "reversal_exceeds_spend"),
        (book.event(5, at=NOON - 7 * DAY_US), "charged"),
        (book.event(5, at=NOON + DAY_US), "charged"),
    ]
    assert [book.rules.event(event)[0] for event, _ in cases] == [expected for _, expected in cases]


def test_a_balance_never_exceeds_64_bits() -> None:
    book = Book()
    while (code := book.do("deposit_cash", amount=LARGEST_AMOUNT)) is None:
        assert book.rules.business_centers["b"].cash < 2**63
    assert code == "invalid"


def test_refusals_come_in_the_order_of_the_contract() -> None:
    book = Book()
    assert book.do("set_budget", "standard", ad_account_id="nobody", mode="daily", amount=0) == "invalid"
    assert book.do("set_budget", "standard", ad_account_id="nobody", mode="daily", amount=1) == "not_found"
    assert book.do("set_budget", "standard", ad_account_id="a", mode="daily", amount=1) == "permission_denied"
    assert book.do("repay_credit", "standard", amount=1) == "invalid"
    assert book.do("disable_automatic_allocation", "standard") == "permission_denied"
    assert book.do("disable_automatic_allocation") == "conflict"
    assert book.do("enable_automatic_allocation") is None
    assert book.do("enable_automatic_allocation") == "already_exists"
    assert book.do("disable_automatic_allocation") == "irreversible"
    assert book.do("reset_budget", ad_account_id="a") is None
    assert book.do("set_budget", ad_account_id="a", mode="daily", amount=1) is None
    assert book.do("reset_budget", ad_account_id="a") == "not_eligible"
    for _ in range(9):
        assert book.do("set_budget", ad_account_id="a", mode="unlimited") is None
    assert book.do("set_budget", ad_account_id="a", mode="unlimited") == "budget_change_limit"
    book.later(NOON + DAY_US)
    assert book.do("set_budget", ad_account_id="a", mode="unlimited") is None
