"""Grants and lines that are used up, expired or quiet leave memory, and no decision depends on it."""

import gc
import json
import random
import tracemalloc
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.rules import forgetting, shard, timers
from shared.rules.policy import Policy
from shared.rules.shard import DAY_US, Shard
from shared.rules.state import Grant
from tests.unit.pure_ledger import PureLedger, dump_pieces
from tests.unit.test_rules_tables import HOUR, NOON, Book
from tests.unit.tied_work import TiedWork


class Remembering(PureLedger):
    """A ledger whose rules forget nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.rules = RememberingShard()


class RememberingShard(Shard):
    """Rules that forget nothing."""

    def _forget_grants(self) -> None:
        pass


def grants_in_memory(ledger: PureLedger) -> int:
    return sum(len(center.grants) for center in ledger.rules.business_centers.values())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_grants_that_left_memory_decide_as_if_they_had_stayed(seed: int) -> None:
    forgetting_one, remembering, crash = PureLedger(), Remembering(), random.Random(seed)
    for policy, now, messages in TiedWork(seed).history(100):
        forgetting_one.policy = remembering.policy = policy
        fates = remembering.batch(messages, now)
        assert forgetting_one.batch(messages, now) == fates
        if crash.random() < 0.05:
            forgetting_one.reload()
    assert forgetting_one.encoded() == remembering.encoded()
    assert grants_in_memory(forgetting_one) < grants_in_memory(remembering)


# ---- A grant that left and is needed again --------------------------------------------------------------------------


class Told(PureLedger):
    """A ledger with one Business Center `b` and two accounts, and short methods that decide one batch each."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOON
        self._ids = 0
        self.do("open_business_center", currency="USD", time_zone="UTC")
        for account in ("a", "z"):
            kind = {"billing": "monthly_invoicing", "buying_type": "auction", "time_zone": "UTC"}
            self.do("open_ad_account", ad_account_id=account, **kind)

    def do(self, type_: str, **fields: Any) -> str:
        """Decide a command. Return its code, or `accepted`."""
        self._ids += 1
        actor = {"id": "x", "role": "admin"}
        command = {"command_id": str(UUID(int=self._ids)), "type": type_, "issued_at": "2027-03-10T12:00:00Z"}
        message = json.dumps({**command, "business_center_id": "b", "actor": actor, **fields}).encode()
        [(status, code)] = self.batch([("command", message)], self.now)
        return str(code or status)

    def event(self, amount: str, reverses: str | None = None, account: str = "a") -> str:
        """Decide a spend or reversal, and return its event id."""
        self._ids += 1
        event_id = str(UUID(int=self._ids))
        event = {"type": "reversal" if reverses else "spend", "event_id": event_id, "business_center_id": "b"}
        rest = {"campaign_id": "c", "amount": amount, "currency": "USD", "occurred_at": "2027-03-10T12:00:00Z"}
        event |= {"ad_account_id": account, **rest, **({"reverses": reverses} if reverses else {})}
        assert self.batch([("event", json.dumps(event).encode())], self.now) == ["charged"]
        return event_id

    def pass_two_batches(self) -> None:
        for _ in range(2):
            self.decide_something()

    def decide_something(self) -> None:
        assert self.do("disable_automatic_allocation") in ("conflict", "irreversible")

    def last_movement(self) -> tuple[str, str | None, int | None]:
        """Return kind, holder and amount of the last entry that moves money."""
        line, amount, *_ = next(entry for entry in reversed(self.entries) if entry[1] is not None)
        return line.kind, line.holder, amount

    @property
    def grants(self) -> dict[tuple[str, str], Grant]:
        return self.rules.business_centers["b"].grants


def used_up(account: str | None = "a", **fields: Any) -> tuple[Told, str]:
    """Let a spend use up a voucher of 5, and let the voucher leave memory. Return the spend's id."""
    told = Told()
    if account is None:
        told.do("enable_automatic_allocation")
        told.do("set_budget", ad_account_id="a", mode="unlimited")
    told.do("grant_voucher", voucher_id="v", amount="5", **({"ad_account_id": account} if account else {}), **fields)
    spend = told.event("5")
    assert told.grants
    told.pass_two_batches()
    assert not told.grants
    assert not told.rules.accounts["a"].holdings
    return told, spend


def test_a_grant_stays_in_memory_for_one_batch_after_it_ended() -> None:
    told = Told()
    told.do("grant_voucher", voucher_id="v", amount="5", ad_account_id="a")
    told.event("5")
    told.decide_something()
    assert told.grants, "the batch that ended it may not be in the ledger yet"
    told.decide_something()
    assert not told.grants


def test_batches_with_only_timers_release_no_grant_from_memory() -> None:
    """The inputs after such batches use what was looked up before them."""
    told = Told()
    told.do("grant_voucher", voucher_id="v", amount="5", ad_account_id="a", expires_at="2027-03-10T13:00:00Z")
    told.now += HOUR
    for _ in range(3):
        told.batch([], told.now)
    assert told.grants["voucher", "v"].expired
    told.pass_two_batches()
    assert told.grants, "the first of them is the first after the timers"
    told.decide_something()
    assert not told.grants


def test_an_id_stays_taken_forever() -> None:
    told, _ = used_up()
    assert told.do("grant_voucher", voucher_id="v", amount="1") == "already_exists"
    assert told.do("grant_ad_credit", ad_credit_id="v", amount="1") == "accepted", "another kind, another id"


def test_neither_a_used_up_nor_an_unknown_ad_credit_can_be_allocated() -> None:
    told = Told()
    told.do("grant_ad_credit", ad_credit_id="x", amount="5")
    told.do("allocate_ad_credit", ad_credit_id="x", ad_account_id="a", amount="5")
    told.event("5")
    told.pass_two_batches()
    assert not told.grants
    assert told.do("allocate_ad_credit", ad_credit_id="x", ad_account_id="a", amount="1") == "insufficient_funds"
    assert told.do("allocate_ad_credit", ad_credit_id="y", ad_account_id="a", amount="1") == "not_found"


@pytest.mark.parametrize(("account", "holder"), [("a", "ad_account"), (None, "business_center")])
def test_a_reversed_part_returns_to_the_holder_of_the_grant(account: str | None, holder: str) -> None:
    told, spend = used_up(account)
    told.event("2", reverses=spend)
    assert told.last_movement() == ("reversal", holder, 2_000_000)
    assert told.grants["voucher", "v"].filled == 1
    told.event("2")
    assert told.last_movement()[2] == -2_000_000, "and pays again"


def test_a_used_up_voucher_joins_automatic_allocation_with_its_account() -> None:
    told, spend = used_up()
    told.do("enable_automatic_allocation")
    told.pass_two_batches()
    told.event("2", reverses=spend)
    assert told.last_movement() == ("reversal", "business_center", 2_000_000)


def test_a_tied_voucher_stays_with_its_account_and_so_does_one_granted_after_it_joined() -> None:
    told, spend = used_up(campaign_ids=["c"])
    told.do("enable_automatic_allocation")
    told.do("set_budget", ad_account_id="a", mode="unlimited")
    told.do("deposit_cash", amount="9")
    told.do("grant_voucher", voucher_id="later", amount="3", ad_account_id="a")
    after = told.event("3")
    told.pass_two_batches()
    assert not told.grants
    for each in (spend, after):
        told.event("2", reverses=each)
        assert told.last_movement() == ("reversal", "ad_account", 2_000_000)


def test_a_part_of_a_grant_that_expired_meanwhile_is_forfeited() -> None:
    told, spend = used_up(expires_at="2027-03-10T13:00:00Z")
    told.now += HOUR
    told.event("2", reverses=spend)
    assert told.last_movement() == ("forfeit", None, 2_000_000)


def test_a_grant_that_was_paid_back_expires_at_its_time() -> None:
    told, spend = used_up(expires_at="2027-03-10T13:00:00Z")
    told.reload()
    told.event("2", reverses=spend)
    told.now += HOUR
    told.batch([], told.now)
    assert told.last_movement() == ("expiry", "ad_account", -2_000_000)


def test_an_ad_credit_expires_in_all_accounts_in_the_order_in_which_they_got_some() -> None:
    told = Told()
    told.do("grant_ad_credit", ad_credit_id="x", amount="5", expires_at="2027-03-10T13:00:00Z")
    told.do("allocate_ad_credit", ad_credit_id="x", ad_account_id="z", amount="2")
    told.do("allocate_ad_credit", ad_credit_id="x", ad_account_id="a", amount="3")
    spends = [told.event("3"), told.event("2", account="z")]
    told.pass_two_batches()
    assert not told.grants
    told.event("1", reverses=spends[0])
    told.event("1", reverses=spends[1], account="z")
    told.now += HOUR
    told.batch([], told.now)
    assert [line.ad_account_id for line, *_ in told.entries if line.kind == "expiry"] == ["z", "a"]


# ---- Bounded memory -------------------------------------------------------------------------------------------------


def test_memory_and_snapshots_do_not_grow_with_used_up_vouchers() -> None:
    book = Book()
    book.do("deposit_cash", amount=10**12, ad_account_id="a")
    sizes, dumped = [], []
    tracemalloc.start()
    for number in range(5_000):
        tied = ["c"] if number % 3 == 0 else None
        expires_at = NOON + 400 * DAY_US if number % 2 else None
        book.do(
            "grant_voucher",
            voucher_id=str(number),
            amount=5,
            ad_account_id="a",
            campaign_ids=tied,
            expires_at=expires_at,
        )
        book.spend(6)
        book.later(NOON)
        if number % 1_000 == 999:
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
            dumped.append(sum(map(len, dump_pieces(book.rules))))
    tracemalloc.stop()
    assert dumped[-1] < dumped[0] + 100
    assert sizes[-1] < sizes[1] * 1.25, f"bytes held after each 1,000 vouchers: {sizes}"
    assert len(book.rules.timers) < 2 * timers.FEWEST_IDLE


def test_lines_of_quiet_campaigns_are_forgotten_and_those_of_busy_ones_stay() -> None:
    book = Book()
    book.do("deposit_cash", amount=1_000, ad_account_id="a")
    book.do("grant_voucher", voucher_id="v", amount=1_000, ad_account_id="a")
    account = book.rules.accounts["a"]
    [voucher] = account.holdings.values()
    for campaign in ("quiet", "busy"):
        book.spend(1, campaign)
    assert len(voucher.lines) == 2
    cash_first = Policy("cash-first", ("cash", "voucher"))
    book.rules.begin(NOON, cash_first)
    for campaign in ("quiet", "busy"):
        book.spend(1, campaign)
    for day in range(1, forgetting.QUIET_DAYS + 2):
        book.later(NOON + day * DAY_US)
        book.spend(1, "busy", NOON + day * DAY_US)
    assert {id: len(campaign.lines) for id, campaign in account.campaigns.items()} == {"quiet": 0, "busy": 1}
    assert not voucher.lines


@pytest.mark.parametrize("days_between_batches", [0, 1])
def test_lines_are_forgotten_in_bounded_portions(days_between_batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds even if a day has fewer batches than a round needs."""
    monkeypatch.setattr(shard, "FORGOTTEN_AT_ONCE", 10)
    book = Book()
    book.do("deposit_cash", amount=1_000, ad_account_id="a")
    for number in range(35):
        book.spend(1, f"c-{number}")
    left = []
    for batch in range(5):
        book.later(NOON + (3 + batch * days_between_batches) * DAY_US)
        left.append(sum(1 for campaign in book.rules.accounts["a"].campaigns.values() if campaign.lines))
    assert left == [25, 15, 5, 0, 0]
