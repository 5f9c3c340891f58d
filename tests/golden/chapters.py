"""The inputs of the golden ledger, in chapters. A chapter that is recorded is never decided from here again.

To record a change of a rule, add a chapter at the end and run `python -m tests.golden`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, count
from typing import Any
from uuid import UUID

from shared.rules.calendar import Zones
from shared.rules.entries import canonical_json
from shared.rules.policy import STANDARD, Policy
from shared.rules.ways import TopicTerms
from tests.model.forms import rfc3339
from tests.model.workload import Work, Workload
from tests.zones import release

START_US = int(datetime(2027, 3, 10, 12, tzinfo=UTC).timestamp()) * 1_000_000
HOUR_US = 3_600_000_000
QUIET_TOPIC = Policy(
    "quiet-topic", topic=TopicTerms(roles=("system",), types=("deposit_cash",), largest_amount_micros=50_000_000)
)
OTHER = Policy("other-order", ("ad_credit", "voucher", "cash", "credit"), ("cash", "credit_line"))


@dataclass(frozen=True, slots=True)
class Scene:
    """One batch: its messages, its time, and what it names."""

    works: list[Work]
    now: int
    policy: Policy
    rules: int
    zones: Zones


class Told:
    """A short way to write messages of one Business Center. Their ids are numbers, so that the file stays small."""

    def __init__(self, center: str, first_id: int) -> None:
        self.center = center
        self._ids = count(first_id)

    def command(self, type_: str, **fields: Any) -> Work:
        """Return a command of an admin."""
        common = {"type": type_, "business_center_id": self.center, "issued_at": "2027-03-10T12:00:00Z"}
        actor = {"id": "ann", "role": "admin"}
        return Work("command", {"command_id": self._id(), **common, "actor": actor, **fields})

    def account(self, name: str, zone: str = "Asia/Tokyo", billing: str = "monthly_invoicing") -> Work:
        """Return the command that opens an account."""
        kind = {"billing": billing, "buying_type": "auction", "time_zone": zone}
        return self.command("open_ad_account", ad_account_id=f"{self.center}-{name}", **kind)

    def spend(self, name: str, amount: str, now: int, campaign: str = "spring") -> Work:
        """Return a spend of the account that occurs now."""
        ids = {"event_id": self._id(), "business_center_id": self.center, "ad_account_id": f"{self.center}-{name}"}
        spent = {"campaign_id": campaign, "amount": amount, "currency": "USD", "occurred_at": rfc3339(now)}
        return Work("event", {"type": "spend", **ids, **spent})

    def reversal(self, spend: Work, now: int, amount: str | None = None) -> Work:
        """Return a reversal of a part of the spend, or of the whole."""
        taken = {"type": "reversal", "event_id": self._id(), "reverses": spend.message["event_id"], "reason": "why not"}
        taken["amount"] = amount or spend.message["amount"]
        return Work("event", {**spend.message, **taken, "occurred_at": rfc3339(now)})

    def long_voucher(self, size: int, **fields: Any) -> Work:
        """Return a voucher whose command takes this many bytes in the ledger: it repeats the name of a campaign."""
        bare = self.command("grant_voucher", voucher_id="long", amount="1", campaign_ids=[], **fields)
        whole, rest = divmod(size + 1 - len(canonical_json(bare.message)), len('"",') + 64)
        named = ["x" * 64] * whole + ["x" * (rest - len('"",'))]
        return Work("command", {**bare.message, "campaign_ids": named})

    def _id(self) -> str:
        return str(UUID(int=next(self._ids)))


def told(now: int, center: str, first_id: int, accounts: int) -> Iterator[tuple[int, list[Work]]]:
    """Yield what random work may lack: credit, a reset, a reversal after the voucher expired, many participants."""
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
    """Some days of random work, under two policies."""
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
    """The second version begins. A day later Tokyo gets the days of UTC and New York those of Kathmandu, and back."""
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


def who_and_how_much(now: int) -> Iterator[Scene]:
    """The third version: entries keep ways, a policy bounds the topic, and Business Centers bound a spend."""
    zones = release("2026a")
    for at, works in told(now, "third", 30_000, accounts=2):
        yield Scene([_signed(work) for work in works], at, STANDARD, 3, zones)
    now += 6 * HOUR_US
    workload, tell = Workload(33, centers=3, prefix="three-"), Told("third", 31_000)
    yield Scene(workload.opening(now), now, STANDARD, 3, zones)
    bound = tell.command("set_largest_spend", amount="3")
    yield Scene([_signed(bound)], now, QUIET_TOPIC, 3, zones)
    yield Scene(
        [tell.command("set_largest_spend"), tell.spend("b", "4", now), tell.spend("b", "3", now)],
        now,
        STANDARD,
        3,
        zones,
    )
    for step in range(36):
        now += HOUR_US if step % 4 else 0
        works = [workload.next(now) for _ in range(1 + step % 3)]
        yield Scene(
            [_signed(work) if step % 2 else work for work in works],
            now,
            QUIET_TOPIC if 15 < step < 27 else STANDARD,
            3,
            zones,
        )


def _signed(work: Work) -> Work:
    """Return the message, signed by the API if it is a command."""
    return Work("signed", work.message) if work.kind == "command" else work


def where_money_goes(now: int) -> Iterator[Scene]:
    """Cases that are rare in the other chapters: every pocket and its returns, tied money, late spends, a long command.

    Its scenes have times of their own, because they need the ends of certain days and of a month.
    """
    assert now < _utc(3, 18, 0), "the ledger's time never goes back"
    zones, shared, tied = release("2026a"), Told("fourth", 40_000), Told("fifth", 41_000)
    later = (_short_day(tied), _late_spends(tied), _as_long_as_may_be(tied))
    for at, works in chain(_by_hand_and_shared(shared), _tied_money(tied), *later):
        yield Scene(works, at, STANDARD, 3, zones)


def _by_hand_and_shared(tell: Told) -> Iterator[tuple[int, list[Work]]]:
    """Each pocket pays in its turn, money moves on enabling, spends are reversed, and shared pockets run out."""
    a, b, p = ({"ad_account_id": f"{tell.center}-{name}"} for name in "abp")
    to_account, back = {"direction": "to_ad_account"}, {"direction": "to_business_center"}
    now = _utc(3, 18, 0)
    expiring = {"voucher_id": "order-a", "amount": "2", "expires_at": rfc3339(now + 720 * HOUR_US)}
    yield (
        now,
        [
            tell.command("open_business_center", currency="USD", time_zone="America/New_York"),
            *(tell.account("a"), tell.account("b"), tell.account("p", billing="autopay")),
            tell.command("deposit_cash", amount="50"),
            tell.command("set_credit_line", limit="40"),
            # For spring these pay in the order of their last letters, although only a and c are tied to it.
            tell.command("grant_voucher", voucher_id="order-b", amount="7", **a),
            tell.command("grant_voucher", voucher_id="order-c", amount="3", campaign_ids=["spring"], **a),
            tell.command("grant_voucher", **expiring, campaign_ids=["spring"], **a),
            tell.command("grant_ad_credit", ad_credit_id="pool", amount="6"),
            tell.command("allocate_ad_credit", ad_credit_id="pool", amount="4", **a),
            tell.command("deposit_cash", amount="9", **a),
            tell.command("transfer_balance", **to_account, pocket="cash", amount="5", **a),
            tell.command("transfer_balance", **to_account, pocket="credit", amount="10", **a),
            tell.command("transfer_balance", **to_account, pocket="credit", amount="5", **p),
        ],
    )
    now += HOUR_US
    spent = [tell.spend("a", *each) for each in (("3", now), ("20", now, "autumn"), ("4", now, "autumn"))]
    yield (
        now,
        [
            tell.command("transfer_balance", **back, pocket="cash", amount="2", **a),
            tell.command("transfer_balance", **back, pocket="credit", amount="3", **a),
            *spent,
        ],
    )
    yield (
        now + HOUR_US,
        [
            tell.command("grant_voucher", voucher_id="joins", amount="6", **a),
            tell.command("deposit_cash", amount="4", **a),
            tell.command("grant_voucher", voucher_id="shared", amount="8"),
            tell.command("deposit_cash", amount="5", **b),
            tell.command("set_budget", mode="monthly", amount="60", **b),
            tell.command("enable_automatic_allocation"),
        ],
    )
    # Money returns to the holder that its pocket belongs to now.
    now += 2 * HOUR_US
    yield (
        now,
        [
            *(tell.reversal(each, now) for each in spent[1:]),
            tell.command("transfer_balance", **back, pocket="cash", amount="1", **a),
            tell.command("set_budget", mode="unlimited", **a),
        ],
    )
    # A voucher and cash pay the second one. After the last one, only part of the credit line is left.
    now += HOUR_US
    last = tell.spend("a", "60", now)
    yield now, [tell.spend("a", "31", now), tell.spend("b", "10", now, "autumn"), tell.spend("b", "100", now), last]
    now += HOUR_US
    yield now, [tell.command("set_credit_line", limit="1"), tell.reversal(last, now), tell.spend("a", "6", now)]
    yield (
        now + HOUR_US,
        [
            tell.command("repay_credit", amount="4.5"),
            tell.command("transfer_balance", **back, pocket="credit", amount="5", **p),
        ],
    )


def _tied_money(tell: Told) -> Iterator[tuple[int, list[Work]]]:
    """All money left is tied to some campaigns. The others stop, and resume when money comes that may pay for them."""
    t = {"ad_account_id": f"{tell.center}-t"}
    now = _utc(3, 18, 10)
    yield (
        now,
        [
            tell.command("open_business_center", currency="USD", time_zone="America/New_York"),
            tell.account("t"),
            tell.command("deposit_cash", amount="3", **t),
            tell.command("grant_voucher", voucher_id="springs", amount="3", campaign_ids=["spring"], **t),
        ],
    )
    spent = (("1", now), ("1", now, "autumn"), ("2", now, "autumn"), ("1", now, "winter"))
    yield now, [tell.spend("t", *each) for each in spent]
    yield (
        now + HOUR_US,
        [
            tell.command("grant_voucher", voucher_id="autumns", amount="2", campaign_ids=["autumn"], **t),
            *(tell.spend("t", "1", now, "autumn") for _ in range(2)),
        ],
    )
    yield now + 2 * HOUR_US, [tell.command("deposit_cash", amount="1", **t), tell.spend("t", "1", now, "winter")]
    # At Tokyo's midnight a voucher expires while spring's daily budget is used up: the expiry fires first.
    midnight = _utc(3, 18, 15)
    brief = {"voucher_id": "brief", "amount": "1", "expires_at": rfc3339(midnight)}
    yield (
        now + 3 * HOUR_US,
        [
            tell.command("set_campaign_budget", campaign_id="spring", mode="daily", amount="1", **t),
            tell.command("grant_voucher", **brief, campaign_ids=["winter"], **t),
        ],
    )
    yield midnight, [tell.spend("t", "0.5", midnight)]
    yield midnight, [tell.command("enable_automatic_allocation")]


def _short_day(tell: Told) -> Iterator[tuple[int, list[Work]]]:
    """At Troll the clock is put forward by two hours, so the day ends after 22 hours."""
    s, now = {"ad_account_id": f"{tell.center}-s"}, _utc(3, 28, 20)
    yield (
        now,
        [
            tell.account("s", "Antarctica/Troll", billing="prepay"),
            tell.command("deposit_cash", amount="9", **s),
            tell.command("set_budget", mode="daily", amount="2", **s),
            tell.spend("s", "2", now),
        ],
    )
    yield now + 3 * HOUR_US, [tell.spend("s", "2", now + 3 * HOUR_US)]


def _late_spends(tell: Told) -> Iterator[tuple[int, list[Work]]]:
    """March ends in Tokyo but not for the Business Center. Then spends of March arrive, and spends of tomorrow."""
    m, d, c = ({"ad_account_id": f"{tell.center}-{name}"} for name in "mdc")
    now = _utc(3, 31, 14)
    yield (
        now,
        [
            *(tell.account(name, billing="prepay") for name in "mdc"),
            *(tell.command("deposit_cash", amount="60", **each) for each in (m, d, c)),
            tell.command("set_budget", mode="monthly", amount="20", **m),
            tell.command("set_budget", mode="daily", amount="10", **d),
            tell.command("set_budget", mode="custom", amount="5", **c),
            tell.command("set_campaign_budget", campaign_id="autumn", mode="daily", amount="2", **d),
            *(tell.spend("m", "5", now), tell.spend("d", "8", now), tell.spend("c", "5", now)),
        ],
    )
    april = now + 2 * HOUR_US
    yield (
        april,
        [
            *(tell.spend("m", "4", april), tell.spend("d", "8", april)),
            tell.command("set_budget", mode="daily", amount="3", **c),
        ],
    )
    yield (
        april,
        [
            # March has 15 left and its last day 2. A custom budget does not limit days that have ended.
            *(tell.spend("m", "18", now), tell.spend("d", "3", now), tell.spend("c", "4", now)),
            *(tell.spend("m", "17", april), tell.spend("c", "4", april)),
            # Both campaigns use up the next day in advance, one before it has a budget: the day begins with pauses.
            *(tell.spend("d", "2", april + 23 * HOUR_US, campaign) for campaign in ("autumn", "winter")),
            tell.command("set_campaign_budget", campaign_id="winter", mode="daily", amount="2", **d),
        ],
    )
    yield april + 24 * HOUR_US, [tell.spend("d", "1", april + 24 * HOUR_US)]


def _as_long_as_may_be(tell: Told) -> Iterator[tuple[int, list[Work]]]:
    """A command that is one byte too long is refused, in a batch of its own, so that the refusal is recorded too."""
    now, account = _utc(4, 1, 18), {"ad_account_id": f"{tell.center}-d"}
    yield now, [tell.long_voucher(40_961, **account)]
    yield now, [tell.long_voucher(40_960, **account)]


def shares_of_memory(now: int) -> Iterator[Scene]:
    """The fourth version. Its bound is out of reach of a small file, and decides nothing here."""
    now, zones = now + 24 * HOUR_US, release("2026a")
    for at, works in told(now, "sixth", 50_000, accounts=2):
        yield Scene([_signed(work) for work in works], at, STANDARD, 4, zones)


def returns_to_full_pockets(now: int) -> Iterator[Scene]:
    """The fifth version. An account holds as much cash as fits, and still takes back what was beyond its budgets."""
    tell, zones = Told("seventh", 60_000), release("2026a")
    mine = {"ad_account_id": "seventh-a"}
    midnight = (now // (24 * HOUR_US) + 2) * 24 * HOUR_US
    yesterday, today = tell.spend("a", "4", midnight - 1), tell.spend("a", "9", midnight)
    scenes = [
        [
            tell.command("open_business_center", currency="USD", time_zone="UTC"),
            tell.account("a", "UTC", billing="prepay"),
            *(tell.command("deposit_cash", amount="999999999999.999999", **mine) for _ in range(9)),
            tell.command("deposit_cash", amount="223372036854.775816", **mine),
            tell.command("set_budget", mode="daily", amount="5", **mine),
            tell.command("set_campaign_budget", campaign_id="spring", mode="daily", amount="6", **mine),
        ],
        # The second of them belongs to a day that begins after this batch.
        [yesterday, today],
        [tell.reversal(today, midnight, "0.5"), tell.command("deposit_cash", amount="9", **mine)],
        [tell.reversal(today, midnight, "1"), tell.reversal(today, midnight, "2.5")],
    ]
    for at, works in zip((midnight - HOUR_US, midnight - 1, midnight, midnight + HOUR_US), scenes, strict=True):
        yield Scene([_signed(work) for work in works], at, STANDARD, 5, zones)


def timers_before_a_change(now: int) -> Iterator[Scene]:
    """A batch names other time zones, and a day of the ones before has ended: it ends as it was announced."""
    tell, usual = Told("eighth", 70_000), release("2026a")
    moved = release("2026b", Asia__Tokyo="UTC", America__New_York="Asia/Kathmandu")
    mine = {"ad_account_id": "eighth-a"}
    noon = (now // (24 * HOUR_US) + 1) * 24 * HOUR_US + 12 * HOUR_US
    opened = [
        tell.command("open_business_center", currency="USD", time_zone="UTC"),
        tell.account("a", billing="prepay"),
        tell.command("deposit_cash", amount="9", **mine),
        tell.command("set_budget", mode="daily", amount="1", **mine),
        tell.spend("a", "1", noon),
    ]
    after_midnight_in_tokyo = noon + 4 * HOUR_US
    yield Scene(opened, noon, STANDARD, 5, usual)
    yield Scene([tell.spend("a", "0.25", after_midnight_in_tokyo)], after_midnight_in_tokyo, STANDARD, 5, moved)
    yield Scene([tell.spend("a", "0.25", noon + 13 * HOUR_US)], noon + 13 * HOUR_US, OTHER, 5, moved)


def _utc(month: int, day: int, hour: int) -> int:
    return int(datetime(2027, month, day, hour, tzinfo=UTC).timestamp()) * 1_000_000


CHAPTERS: dict[str, Callable[[int], Iterator[Scene]]] = {
    "the first rules": first_rules,
    "bounded, and other days": bounded_and_other_days,
    "who, and how much": who_and_how_much,
    "where money goes": where_money_goes,
    "shares of memory": shares_of_memory,
    "returns to full pockets": returns_to_full_pockets,
    "timers before a change": timers_before_a_change,
}
