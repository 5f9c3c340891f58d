"""A snapshot keeps every field: the loaded state equals the dumped one, and decides the same."""

import json
import random
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.allocation.memory import snapshot_pieces, snapshots
from shared.ledger.encoding import encode_entries
from shared.rules import kept_budgets
from shared.rules.events import Event
from shared.rules.policy import STANDARD, Policy
from shared.rules.shard import DAY_US, Shard
from shared.rules.state import AdAccount, BusinessCenter, Campaign, Grant, Holding
from tests.unit.pure_ledger import dump_pieces, load_pieces
from tests.unit.states import States, structure
from tests.unit.test_rules_tables import NOON, Book
from tests.unit.what_is_written import credit, movement
from tests.zones import INSTALLED

KEPT = [(kind, name) for kind in snapshot_pieces.PLANS for name in snapshot_pieces.fields_of(kind)]


def loaded(shard: Shard) -> Shard:
    again = Shard()
    again.tables |= shard.tables
    load_pieces(again, dump_pieces(shard))
    return again


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_a_loaded_state_equals_the_dumped_one(seed: int) -> None:
    shard = States(seed).shard()
    assert structure(loaded(shard)) == structure(shard)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_a_loaded_state_decides_like_the_dumped_one(seed: int) -> None:
    shard = States(seed).shard()
    again = loaded(shard)
    assert decided(again, seed) == decided(shard, seed)
    assert structure(again) == structure(shard)


def decided(shard: Shard, seed: int) -> Any:
    """Return the bytes of a few days of spends under another policy, with all timers."""
    chance = random.Random(seed)
    entries, now = [], shard.now
    for _ in range(8):
        now += chance.choice((0, DAY_US // 3, DAY_US, 4 * DAY_US))
        shard.begin(
            now, chance.choice((shard.policy, STANDARD)), resting={account: {"new": None} for account in shard.accounts}
        )
        for center in shard.business_centers.values():
            for account in center.accounts.values():
                shard.event(spend(chance, center, account, now))
        entries += encode_entries(shard.entries, 0, shard.position + 1, shard.now)
    return entries


def spend(chance: random.Random, center: BusinessCenter, account: AdAccount, now: int) -> Event:
    campaign = chance.choice([*account.campaigns, "new"])
    occurred_at = now - chance.choice((0, 0, DAY_US, 6 * DAY_US))
    amount = chance.randint(1, 10**9)
    return (chance.randbytes(16), center.id, account.id, campaign, amount, center.currency, occurred_at, None, None)


@pytest.mark.parametrize(("kind", "name"), KEPT, ids=[f"{kind.__name__}.{name}" for kind, name in KEPT])
def test_a_field_that_is_not_dumped_is_noticed(kind: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states above have another value in every field, so a field that is not dumped is noticed."""
    without = tuple(each for each in snapshot_pieces.fields_of(kind) if each != name)
    monkeypatch.setitem(snapshot_pieces.PLANS, kind, snapshot_pieces.plan_of(kind, without))
    assert any(is_missed(States(seed).shard()) for seed in range(30))


def is_missed(shard: Shard) -> bool:
    try:
        return bool(structure(loaded(shard)) != structure(shard))
    except (KeyError, TypeError):  # The arguments without which an object cannot be made.
        return True


def test_the_fields_are_those_of_the_current_format() -> None:
    """If the fields change, raise `FORMAT` and write the new fields here."""
    assert snapshot_pieces.FORMAT == 6
    assert {kind.__name__: " ".join(plan.names) for kind, plan in snapshot_pieces.PLANS.items()} == {
        "BusinessCenter": "automatic_position automatic_since cash credit_limit credit_used currency empty"
        " finance_roles id largest_spend zone",
        "AdAccount": "billing budget buying_type campaigns_ever cash causes changes changes_day credit daily_campaigns"
        " has_tied id owned participates turn_over_at zone",
        "Campaign": "budget causes id order",
        "Grant": "campaigns expired expires_at id kind order",
        "Holding": "account remaining",
    }
    assert " ".join(kept_budgets.FIELDS) == (
        "amount before_day before_month before_start day days history mode months started_at started_day"
        " started_position total"
    )


def test_the_first_piece_holds_the_state_of_the_shard_itself() -> None:
    first, _ = next(snapshot_pieces.dump(Shard()))
    elsewhere = {"business_centers", "accounts", "_zones", "timers"}
    # They name the policy and the zones in force.
    in_force = {"zones", "tables", "named_by_ledger", "kept_zones"}
    of_one_batch = {"batch", "_previous", "_known", "_spends", "_recorded", "accounts_elsewhere"}
    again = {"_routes", "campaigns", "memory", "bounded", "_window", "_ended", "_quiet_day", "_quiet"}
    assert (
        set(first) - {"rules", "zones_release", "kept_zones"}
        == set(vars(Shard())) - elsewhere - in_force - of_one_batch - again
    )


def test_pieces_are_small_and_share_no_objects_with_the_state() -> None:
    shard = States(7).shard()
    dumped = list(snapshot_pieces.dump(shard))
    objects = list(shard.business_centers.values())
    accounts = [account for center in objects for account in center.accounts.values()]
    grants = [grant for center in objects for grant in center.grants.values()]
    made = len(objects) + len(accounts) + len(grants) + sum(len(grant.holdings) for grant in grants)
    assert len(dumped) == 1 + made + sum(1 for piece in dumped if piece[0] == "Campaign")
    before = json.dumps(dumped)
    decided(shard, 7)
    assert json.dumps(dumped) == before


def test_a_snapshot_with_other_fields_is_refused() -> None:
    first, *rest = snapshot_pieces.dump(States(1).shard())
    first[1]["Budget"].remove("months")
    with pytest.raises(ValueError, match="other rules"):
        snapshot_pieces.load(Shard(zones=INSTALLED), [first, *rest])


def test_every_type_of_the_state_has_a_plan_in_the_snapshot() -> None:
    assert set(snapshot_pieces.PLANS) == {BusinessCenter, AdAccount, Campaign, Grant, Holding}


def test_a_snapshot_keeps_everything_and_later_decisions_stay_the_same() -> None:
    book = Book()
    book.open("second", zone="Asia/Tokyo")
    book.do("open_ad_account", ad_account_id="p", billing="prepay", buying_type="auction", time_zone="UTC", owned=False)
    book.do("set_credit_line", limit=20)
    book.do("transfer_balance", **credit(6))
    book.do("deposit_cash", amount=50, ad_account_id="a")
    book.do("grant_voucher", voucher_id="t", amount=3, ad_account_id="a", campaign_ids=["z", "y"], expires_at=NOON + 1)
    book.do("grant_voucher", voucher_id="v", amount=3)
    book.do("grant_ad_credit", ad_credit_id="x", amount=10)
    book.do("allocate_ad_credit", ad_credit_id="x", ad_account_id="a", amount=4)
    book.do("set_budget", ad_account_id="a", mode="monthly", amount=70)
    book.do("set_campaign_budget", ad_account_id="a", campaign_id="c", mode="lifetime", amount=60)
    for days in (0, 1, 30):
        book.later(NOON + days * DAY_US)
        book.spend(5, at=book.rules.now)
    again = Shard(Policy("other"), zones=INSTALLED)
    load_pieces(again, dump_pieces(book.rules))
    assert dump_pieces(again) == dump_pieces(book.rules)
    assert (again.now, again.policy) == (book.rules.now, STANDARD)
    assert again.position == again.batch.position == book.rules.position + len(book.rules.entries)
    assert again.next_due() == book.rules.next_due()
    event, found = book.event(100, at=NOON + 29 * DAY_US, id=77), []
    for rules in (again, book.rules):
        before = len(rules.entries)
        assert rules.event(event)[0] == "charged"
        found.append([movement(entry) for entry in rules.entries[before:]])
    assert found[0] == found[1]


def test_a_snapshot_keeps_the_stopped_state_of_a_campaign() -> None:
    book = Book()
    book.do("grant_voucher", voucher_id="v", amount=20, ad_account_id="a", campaign_ids=["other"])
    book.spend(1, "c")
    again = Shard(zones=INSTALLED)
    load_pieces(again, dump_pieces(book.rules))
    book.rules = again
    assert again.accounts["a"].campaigns["c"].causes == len(again.accounts["a"].stopped_campaigns) == 1
    book.do("deposit_cash", amount=1, ad_account_id="a")
    assert again.accounts["a"].campaigns["c"].causes == len(again.accounts["a"].stopped_campaigns) == 0


@pytest.mark.parametrize(
    "value", [b"{}", b"[]", b"0.5", b'""', b"[" * 900 + b"]" * 900, b'{"":' * 900 + b"0" + b"}" * 900]
)
def test_a_forged_line_of_many_values_takes_memory_in_proportion_to_its_bytes(value: bytes) -> None:
    line = b"[" + b",".join([value] * (9_000_000 // (len(value) + 1))) + b"]\n"
    state = zlib.compress(b'[{"position":0,"frontier":""}]\n' + line)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="a line of the snapshot has more than 500000 values"):
            snapshots._restore(Shard(), state)
        assert tracemalloc.get_traced_memory()[1] < 5 * len(line)
    finally:
        tracemalloc.stop()
