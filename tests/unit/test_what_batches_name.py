"""The policy, version of the rules and release of time zones that a batch names decide it, then and in each replay."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from services.incentives.terms import DEAL_TERMS
from shared.contracts.commands import FINANCE_COMMAND, command_content, sent_command
from shared.contracts.zones import installed_zones, is_zone
from shared.ledger.encoding import ALL_NUMBERS, MOST_BYTES, encode_entries
from shared.ledger.replay import newer_rules
from shared.rules import automatic_allocation, pauses, shard, versions, waterfall
from shared.rules.calendar import Zones
from shared.rules.command_types import COMMANDS
from shared.rules.commands import MOST_CONTENT_BYTES
from shared.rules.entries import Line
from shared.rules.policy import STANDARD, Policy
from shared.rules.shard import Shard
from shared.rules.ways import TOPIC
from tests.model.workload import Workload
from tests.unit.pure_ledger import SHARD, PureLedger, dump_pieces, load_pieces
from tests.unit.test_rules_tables import HOUR, NOON, ONE, Book
from tests.zones import INSTALLED, release

FIRST_RULES = replace(STANDARD, rules=1)
# In this release Cairo's days begin nine hours (Tokyo's) before UTC's, Tokyo's when UTC's do.
MOVED = release("2030b", Africa__Cairo="Asia/Tokyo", Asia__Tokyo="UTC")
BEFORE = release("2030a")

DEAL = {
    "client": "acme",
    "ad_account_ids": ["a"],
    "starts_on": "2026-10-01",
    "ends_on": "2026-12-31",
    "currency": "USD",
    "slabs": [{"from": "0", "rate": "0.03"}],
}

Terms = tuple[Policy, Zones]
Batch = tuple[int, Terms, list[tuple[str, dict[str, Any]]]]


# ---- Names of time zones ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Europe/Kiev", "US/Eastern", "UTC", "Etc/GMT+5", "Asia/Tokyo", "GB", "EST5EDT"])
def test_names_of_the_time_zone_database_are_zones_including_links(name: str) -> None:
    assert is_zone(name)
    assert Book().open("z", zone=name) is None
    assert DEAL_TERMS.validate_python({**DEAL, "time_zone": name}).time_zone == name


@pytest.mark.parametrize(
    "name",
    [
        *("localtime", "posixrules", "Factory", "posix/UTC", "right/UTC", "utc", "asia/tokyo", "Asia/tokyo"),
        *("../UTC", "Asia/../UTC", "/UTC", "UTC/", "Asia", "", ".", "zone.tab", "zone1970.tab", "tzdata.zi"),
        *("leapseconds", "__init__", "__init__.py", "Asia/__init__.py", "iso3166.tab", "Europe/Berlin "),
    ],
)
def test_names_that_depend_on_the_machine_are_not_zones(name: str) -> None:
    assert not is_zone(name)
    assert Book().open("z", zone=name) == "invalid"
    with pytest.raises(ValidationError, match=r"time_zone"):
        DEAL_TERMS.validate_python({**DEAL, "time_zone": name})
    assert Shard(zones=INSTALLED).is_zone(name) is False


def test_every_zone_of_the_package_can_be_read_and_has_days() -> None:
    rules = Shard(zones=INSTALLED)
    rules.begin(NOON)
    days = {rules.zone(name).day(NOON) for name in INSTALLED.table}
    assert len(INSTALLED.table) > 590
    assert days <= {date(2027, 3, day).toordinal() for day in (9, 10, 11)}


def test_the_time_zone_files_of_the_machine_are_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zone is made from the given bytes, even if the machine has a file of that name."""
    table = {"Africa/Cairo": installed_zones().table["Asia/Tokyo"]}
    rules = Shard(zones=Zones("here", table))
    rules.begin(NOON)
    assert rules.zone("Africa/Cairo").start(date(2027, 3, 10).toordinal()) == NOON - 21 * HOUR
    with pytest.raises(ValueError, match=r"the release 'here' of the time zones has no 'UTC'"):
        rules.zone("UTC")


# ---- Deciding again -----------------------------------------------------------------------------------------------


def command(type_: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    common = {"command_id": str(uuid4()), "business_center_id": "bc", "issued_at": "2027-03-10T12:00:00Z"}
    actor = {"id": "ann", "role": "admin"}
    return "command", {**common, "actor": actor, "type": type_, **fields}


def spend(amount: str, at: int, account: str = "a", campaign: str = "c") -> tuple[str, dict[str, Any]]:
    moment = datetime.fromtimestamp(at / 1e6, UTC).isoformat()
    ids = {"event_id": str(uuid4()), "business_center_id": "bc", "ad_account_id": account, "campaign_id": campaign}
    return "event", {**ids, "type": "spend", "amount": amount, "currency": "USD", "occurred_at": moment}


def opening(zone: str = "Africa/Cairo", accounts: Sequence[str] = ("a",)) -> list[tuple[str, dict[str, Any]]]:
    kind = {"billing": "monthly_invoicing", "buying_type": "auction", "time_zone": zone}
    return [
        command("open_business_center", currency="USD", time_zone="UTC"),
        *(command("open_ad_account", ad_account_id=account, **kind) for account in accounts),
        *(command("deposit_cash", amount="1000", ad_account_id=account) for account in accounts),
    ]


def encoded(messages: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, bytes]]:
    return [(kind, json.dumps(message).encode()) for kind, message in messages]


def written(
    batches: Sequence[Batch], ledger: PureLedger | None = None, reload: Callable[[int], bool] = bool
) -> PureLedger:
    """Return the ledger of these batches. It is loaded from a snapshot after each batch in `reload`."""
    ledger = ledger or PureLedger()
    for number, (now, (policy, zones), messages) in enumerate(batches):
        ledger.policy, ledger.zones = policy, zones
        ledger.batch(encoded(messages), now)
        if reload(number):
            ledger.reload()
    return ledger


def replayed(batches: Sequence[Batch]) -> list[bytes]:
    """Return the bytes of a replay, which knows the ledger alone and so no batch that wrote nothing."""
    original = written(batches)
    ledger, counts = PureLedger(), [0]
    for now, (policy, zones), messages in batches:
        ledger.policy, ledger.zones = policy, zones
        if counts_of(original, now, counts):
            ledger.batch(encoded(messages), now)
    return ledger.encoded()


def counts_of(ledger: PureLedger, now: int, done: list[int]) -> bool:
    """Return whether the next batch, at this time, has entries."""
    end = done[0]
    while end < len(ledger.recorded) and ledger.recorded[end] == now:
        end += 1
    wrote, done[0] = end > done[0], end
    return wrote


def kinds(ledger: PureLedger) -> list[tuple[str, str | None, int]]:
    """Return the pauses and resumes: kind, entity, and hours after noon."""
    return [
        (line.kind, line.cause, (occurred_at - NOON) // HOUR)
        for line, amount, occurred_at, *_ in ledger.entries
        if amount is None and line.cause is not None
    ]


def test_a_new_release_applies_from_the_first_batch_that_names_it() -> None:
    """Under the first release Cairo's day ends at 22:00 UTC. Under the second it has begun at 15:00 already."""
    batches: list[Batch] = [
        (NOON, (STANDARD, BEFORE), opening()),
        (NOON + 1, (STANDARD, BEFORE), [command("set_budget", ad_account_id="a", mode="daily", amount="5")]),
        (NOON + HOUR, (STANDARD, BEFORE), [spend("5", NOON)]),
        (NOON + 4 * HOUR, (STANDARD, MOVED), [spend("3", NOON + 4 * HOUR)]),
        (NOON + 26 * HOUR, (STANDARD, MOVED), [spend("3", NOON + 26 * HOUR), spend("1", NOON + 28 * HOUR)]),
        (NOON + 28 * HOUR, (STANDARD, MOVED), [spend("1", NOON + 28 * HOUR)]),
    ]
    ledger = written(batches)
    assert kinds(ledger) == [
        ("pause", "ad_account_balance", 0),
        ("resume", "ad_account_balance", 0),
        ("pause", "ad_account_budget", 0),
        ("resume", "ad_account_budget", 4),  # At once under the second release: it is another day.
        ("pause", "ad_account_budget", 26),
        ("resume", "ad_account_budget", 27),  # 15:00 UTC, where the second release begins Cairo's days.
    ]
    days = [date.fromordinal(entry[5]).day for entry in ledger.entries if entry[5] is not None]
    assert days == [10, 11, 11, 11, 12, 12]
    assert replayed(batches) == ledger.encoded()
    assert written(batches, reload=lambda _: True).encoded() == ledger.encoded()


@pytest.mark.parametrize("large_account", [0, pauses.LARGE_ACCOUNT])
def test_a_daily_campaign_budget_follows_the_day_of_the_new_release_in_accounts_of_any_size(
    large_account: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses, "LARGE_ACCOUNT", large_account)
    budget = command("set_campaign_budget", ad_account_id="a", campaign_id="c", mode="daily", amount="5")
    batches: list[Batch] = [
        (NOON, (STANDARD, BEFORE), [*opening(), budget]),
        (NOON + HOUR, (STANDARD, BEFORE), [spend("5", NOON)]),
        (NOON + 4 * HOUR, (STANDARD, MOVED), [command("deposit_cash", ad_account_id="a", amount="1")]),
    ]
    ledger = written(batches)
    changes = [(kind, hour) for kind, cause, hour in kinds(ledger) if cause == "campaign_budget"]
    assert changes == [("pause", 0), ("resume", 4)]
    assert written(batches, reload=lambda _: True).encoded() == ledger.encoded()


def test_the_day_may_move_back_without_harm() -> None:
    back: list[Batch] = [
        (NOON, (STANDARD, MOVED), opening()),
        (NOON + 4 * HOUR, (STANDARD, MOVED), [command("set_budget", ad_account_id="a", mode="daily", amount="5")]),
        (NOON + 5 * HOUR, (STANDARD, MOVED), [spend("5", NOON + 5 * HOUR)]),
        (NOON + 6 * HOUR, (STANDARD, BEFORE), [spend("2", NOON + 6 * HOUR)]),
        (NOON + 40 * HOUR, (STANDARD, BEFORE), [spend("2", NOON + 40 * HOUR)]),
    ]
    ledger = written(back)
    assert replayed(back) == ledger.encoded()
    assert written(back, reload=lambda _: True).encoded() == ledger.encoded()
    assert [hour for kind, cause, hour in kinds(ledger) if cause == "ad_account_budget" and kind == "resume"] != []


def test_a_zone_missing_from_a_release_stays_unchanged() -> None:
    table = {name: data for name, data in INSTALLED.table.items() if name != "Africa/Cairo"}
    lost = Zones("2030c", table)
    book = PureLedger(zones=BEFORE)
    book.batch(encoded(opening()), NOON)
    book.zones = lost
    again = opening(accounts=("b",))[1]
    assert book.batch(encoded([spend("1", NOON), again]), NOON + 1)[1] == ("rejected", "invalid")
    assert set(book.rules.batch.zones) == {"UTC"}
    assert book.rules.accounts["a"].zone.data == INSTALLED.table["Africa/Cairo"]


CAIRO_IS_LOST = Zones("2030d", {name: data for name, data in INSTALLED.table.items() if name != "Africa/Cairo"})
CAIRO_ALONE = Zones("2030e", {"Africa/Cairo": INSTALLED.table["Asia/Tokyo"]})


RELEASES = {each.release: each for each in (BEFORE, MOVED, CAIRO_IS_LOST, CAIRO_ALONE)}
# The last batch before a load wrote nothing under a release that the ledger does not name.
UNNAMED = [("2030a", 1, False), ("2030b", 1, False), ("2030a", 0, True), ("2030b", 1, False), ("2030a", 0, False)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(RELEASES)), st.integers(0, 2), st.booleans()), max_size=12))
@example([("2030a", 0, False), *UNNAMED])
@example([("2030a", 0, False), *UNNAMED, ("2030b", 1, False)])
def test_the_ledger_alone_gives_the_same_bytes_whichever_release_lacks_a_zone(
    steps: list[tuple[str, int, bool]],
) -> None:
    """Each step spends, opens another account in Cairo, or does nothing. Then the shard is loaded again, or not."""
    budget = command("set_budget", ad_account_id="a", mode="daily", amount="5")
    batches: list[Batch] = [(NOON, (STANDARD, BEFORE), [*opening(), budget])]
    for number, (zones, what, _) in enumerate(steps):
        now = NOON + 5 * HOUR * (number + 1)
        messages = [[], [spend("2", now)], [opening(accounts=(f"a{number}",))[1]]][what]
        batches.append((now, (STANDARD, RELEASES[zones]), messages))
    original = written(batches).encoded()
    assert replayed(batches) == original
    assert written(batches, reload=lambda _: False).encoded() == original
    assert written(batches, reload=lambda number: number > 0 and steps[number - 1][2]).encoded() == original


def test_a_batch_names_the_zones_that_the_shard_uses_for_the_first_time() -> None:
    book = PureLedger(zones=BEFORE)
    book.batch(encoded(opening()), NOON)
    assert set(book.rules.batch.zones) == {"UTC", "Africa/Cairo"}
    kind = {"billing": "monthly_invoicing", "buying_type": "auction"}
    again = command("open_ad_account", ad_account_id="a", time_zone="Asia/Tokyo", **kind)
    assert book.batch(encoded([again]), NOON + 1) == [("rejected", "already_exists")]
    assert set(book.rules.batch.zones) == {"Asia/Tokyo"}, "an auditor has to refuse it for the same reason"
    book.batch(encoded([command("deposit_cash", amount="1")]), NOON + 2)
    assert book.rules.batch.zones == {}
    book.zones = MOVED
    book.batch(encoded([command("deposit_cash", amount="1")]), NOON + 3)
    assert set(book.rules.batch.zones) == {"UTC", "Africa/Cairo"}


def test_all_zones_of_the_release_can_be_used_after_a_load() -> None:
    book = PureLedger(zones=BEFORE)
    book.batch(encoded(opening()), NOON)
    recorded = Zones(BEFORE.release, {name: BEFORE.table[name] for name in book.rules.batch.zones})
    pieces = dump_pieces(book.rules)
    book.rules = Shard(STANDARD, zones=recorded)
    load_pieces(book.rules, pieces)
    kind = {"billing": "monthly_invoicing", "buying_type": "auction"}
    opened = command("open_ad_account", ad_account_id="elsewhere", time_zone="Asia/Kathmandu", **kind)
    assert book.batch(encoded([opened]), NOON + 1) == [("accepted", None)]
    assert set(book.rules.batch.zones) == {"Asia/Kathmandu"}


# ---- Batches that write nothing -----------------------------------------------------------------------------------

NO_VOUCHERS = Policy("no-vouchers", ("cash", "credit"), ("cash", "credit_line"))
ONLY_VOUCHERS = Policy("only-vouchers", ("voucher",), ("voucher",))
NOTHING: list[tuple[str, dict[str, Any]]] = []


def test_a_policy_named_only_by_a_batch_without_entries_has_no_effect() -> None:
    """The voucher expires under the policy that the ledger names, although a batch without entries named another."""
    voucher = {"voucher_id": "v", "amount": "5", "ad_account_id": "a"}
    kind = {"billing": "monthly_invoicing", "buying_type": "auction", "time_zone": "UTC"}
    batches: list[Batch] = [
        (
            NOON,
            (ONLY_VOUCHERS, BEFORE),
            [
                command("open_business_center", currency="USD", time_zone="UTC"),
                command("open_ad_account", ad_account_id="a", **kind),
                command("deposit_cash", amount="1", ad_account_id="a"),
                command("grant_voucher", expires_at="2027-03-10T13:00:00Z", **voucher),
            ],
        ),
        (NOON + 1, (NO_VOUCHERS, MOVED), NOTHING),
        (NOON + 2 * HOUR, (NO_VOUCHERS, MOVED), [spend("2", NOON)]),
    ]
    ledger = written(batches)
    assert kinds(ledger)[2:4] == [("pause", "ad_account_balance", 1), ("resume", "ad_account_balance", 2)]
    assert replayed(batches) == ledger.encoded()
    assert written(batches, reload=lambda _: True).encoded() == ledger.encoded()


TERMS = ((STANDARD, BEFORE), (STANDARD, MOVED), (NO_VOUCHERS, BEFORE), (ONLY_VOUCHERS, MOVED))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=25),
    st.sampled_from([1, pauses.LARGE_ACCOUNT]),
)
def test_the_ledger_alone_gives_the_same_bytes_whatever_the_batches_name(
    seed: int, steps: list[tuple[int, int, bool]], large_account: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pauses, "LARGE_ACCOUNT", large_account)
        _compare_what_batches_name(seed, steps)


def _compare_what_batches_name(seed: int, steps: list[tuple[int, int, bool]]) -> None:
    workload, now = Workload(seed, centers=2), NOON
    batches: list[Batch] = [(now, (STANDARD, BEFORE), [(work.kind, work.message) for work in workload.opening(now)])]
    for terms, works, _ in steps:
        now += 5 * HOUR + 1
        some = [workload.next(now) for _ in range(works)]
        batches.append((now, TERMS[terms], [(work.kind, work.message) for work in some]))
    original = written(batches).encoded()
    assert replayed(batches) == original
    assert written(batches, reload=lambda number: number > 0 and steps[number - 1][2]).encoded() == original


# ---- The version of the rules -------------------------------------------------------------------------------------


def test_each_version_describes_its_change() -> None:
    assert list(versions.CHANGES) == list(range(1, versions.CURRENT + 1))
    assert STANDARD.rules == versions.CURRENT
    assert "rules" not in STANDARD.content()
    assert (
        newer_rules(99)
        == f"written by newer rules (version 99, this release knows up to {versions.CURRENT}): use a newer release"
    )


def test_a_changed_rule_applies_from_the_first_batch_that_names_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the next version an account's credit pays before its cash. Earlier decisions stay as they are."""
    draw = waterfall._draw_own

    def credit_first(parts: Any, policy: Policy, campaign: Any, left: int) -> int:
        if policy.rules <= versions.CURRENT:
            return draw(parts, policy, campaign, left)
        return draw(parts, replace(policy, ad_account=("credit", "cash")), campaign, left)

    monkeypatch.setattr(waterfall, "_draw_own", credit_first)
    monkeypatch.setattr(versions, "CHANGES", {**versions.CHANGES, versions.CURRENT + 1: "credit pays before cash"})
    following = replace(STANDARD, rules=versions.CURRENT + 1)
    credit = {"ad_account_id": "a", "direction": "to_ad_account", "pocket": "credit", "amount": "100"}
    money = [command("set_credit_line", limit="500"), command("transfer_balance", **credit)]
    batches: list[Batch] = [
        (NOON, (FIRST_RULES, BEFORE), opening()),
        (NOON + 1, (STANDARD, BEFORE), [*money, spend("1", NOON)]),
        (NOON + 2, (following, BEFORE), [spend("1", NOON)]),
    ]
    ledger = written(batches)
    spent = [line.pocket for line, amount, _, _, _, day, _ in ledger.entries if day is not None]
    assert spent == ["cash", "credit"]
    assert replayed(batches) == ledger.encoded()
    assert written(batches, reload=lambda _: True).encoded() == ledger.encoded()


# ---- Version 2: due timers are bounded ----------------------------------------------------------------------------


def due_all_at_once(ledger: PureLedger, accounts: int, rules: Policy) -> int:
    """Open this many accounts that are paused by their daily budgets. Return when they all resume."""
    names = [f"a{number}" for number in range(accounts)]
    ledger.policy, ledger.zones = rules, BEFORE
    works = [*opening("UTC", names)]
    works += [command("set_budget", ad_account_id=name, mode="daily", amount="1") for name in names]
    works += [spend("1", NOON, account=name) for name in names]
    ledger.batch(encoded(works), NOON)
    return NOON + 12 * HOUR


def test_the_bounds_never_change_within_a_version() -> None:
    assert shard.MOST_TIMER_ENTRIES == 10_000
    assert automatic_allocation.MOST_LISTED == 200
    assert MOST_CONTENT_BYTES == 40_960


@pytest.mark.parametrize("reload", [False, True])
def test_due_timers_take_as_many_batches_as_needed_before_the_records(
    monkeypatch: pytest.MonkeyPatch, reload: bool
) -> None:
    monkeypatch.setattr(shard, "MOST_TIMER_ENTRIES", 3)
    ledger = PureLedger()
    midnight = due_all_at_once(ledger, 8, STANDARD)
    rules, done = ledger.rules, len(ledger.entries)
    sizes, resumed = [], []
    while True:
        rules.begin(midnight + HOUR, STANDARD, zones=BEFORE)
        sizes.append(len(rules.entries))
        resumed += [line.ad_account_id for line, *_ in rules.entries]
        assert {entry[2] for entry in rules.entries} <= {midnight}
        assert rules.now == midnight + HOUR
        if not rules.has_due():
            break
        assert rules.next_due() == midnight
        if reload:
            kept = dump_pieces(rules)
            rules = Shard(STANDARD, zones=BEFORE)
            load_pieces(rules, kept)
            assert dump_pieces(rules) == kept
    assert sizes == [3, 3, 2]
    assert resumed == [f"a{number}" for number in range(8)]
    assert rules.position + len(rules.entries) == done + 8


def test_the_first_version_has_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "MOST_TIMER_ENTRIES", 3)
    ledger = PureLedger()
    midnight = due_all_at_once(ledger, 8, FIRST_RULES)
    ledger.rules.begin(midnight, FIRST_RULES, zones=BEFORE)
    assert (len(ledger.rules.entries), ledger.rules.has_due()) == (8, False)


def test_a_new_policy_waits_until_all_due_timers_have_fired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "MOST_TIMER_ENTRIES", 3)
    ledger = PureLedger()
    midnight = due_all_at_once(ledger, 4, STANDARD)
    ledger.rules.begin(midnight, NO_VOUCHERS, zones=MOVED)
    assert (ledger.rules.has_due(), ledger.rules.policy, ledger.rules.zones) == (True, STANDARD, BEFORE)
    ledger.rules.begin(midnight, NO_VOUCHERS, zones=MOVED)
    assert (ledger.rules.has_due(), ledger.rules.policy, ledger.rules.zones) == (False, NO_VOUCHERS, MOVED)


# ---- Version 2: entries are bounded -------------------------------------------------------------------------------


def enabled(accounts: int, rules: Policy, left_out: int = 0) -> list[dict[str, Any]]:
    """Return the details of the entries that enabling writes for this many accounts, with the longest ids."""
    book = Book(rules)
    names = [f"{number:a>64}" for number in range(accounts + left_out - 1)]
    for number, name in enumerate(names):
        billing = "monthly_invoicing" if number < accounts - 1 else "prepay"
        assert book.open(name, billing=billing) is None
    before = len(book.rules.entries)
    assert book.do("enable_automatic_allocation") is None
    lines = [entry[0] for entry in book.rules.entries[before:]]
    return [json.loads(line.details or "") for line in lines if line.kind == "automatic_allocation_enabled"]


@pytest.mark.parametrize(("accounts", "left_out", "entries"), [(1, 0, 1), (200, 0, 1), (150, 51, 2), (1, 400, 3)])
def test_enabling_lists_its_accounts_in_as_many_entries_as_needed(accounts: int, left_out: int, entries: int) -> None:
    parts = enabled(accounts, STANDARD, left_out)
    whole = enabled(accounts, FIRST_RULES, left_out)
    assert (len(parts), len(whole)) == (entries, 1)
    for key in ("left_out", "participants"):
        assert [each for part in parts for each in part[key]] == whole[0][key]
    assert ["command" in part for part in parts] == [True] + [False] * (entries - 1)
    assert all(len(part["left_out"]) + len(part["participants"]) <= 200 for part in parts)


ID = st.text("aZ9_.:-", min_size=1, max_size=64) | st.just("x" * 64)
AMOUNT = st.sampled_from(["0.000001", "999999999999.999999", "1"])
MODE = {"set_budget": ["daily", "monthly", "custom", "unlimited"], "set_campaign_budget": ["daily", "lifetime"]}
FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "open_business_center": {"currency": st.just("USD"), "time_zone": st.sampled_from(["UTC", "A" * 64])},
    "open_ad_account": {
        "ad_account_id": ID,
        "billing": st.just("monthly_invoicing"),
        "buying_type": st.just("reservation"),
        "time_zone": st.just("America/Argentina/ComodRivadavia"),
    },
    "deposit_cash": {"amount": AMOUNT, "ad_account_id": st.none() | ID},
    "set_credit_line": {"limit": AMOUNT},
    "repay_credit": {"amount": AMOUNT},
    "grant_voucher": {
        "voucher_id": ID,
        "amount": AMOUNT,
        "expires_at": st.just("2030-01-01T00:00:00." + "0" * 40 + "Z"),
        "ad_account_id": ID,
        "campaign_ids": st.integers(1, 1000).flatmap(
            lambda many: st.sampled_from([1, 8, 37, 64]).map(
                lambda length: [f"{number:a>{length}}"[-length:] for number in range(many)]
            )
        ),
    },
    "grant_ad_credit": {"ad_credit_id": ID, "amount": AMOUNT, "expires_at": st.none()},
    "allocate_ad_credit": {"ad_credit_id": ID, "ad_account_id": ID, "amount": AMOUNT},
    "transfer_balance": {
        "ad_account_id": ID,
        "direction": st.just("to_business_center"),
        "pocket": st.just("credit"),
        "amount": AMOUNT,
    },
    "enable_automatic_allocation": {},
    "disable_automatic_allocation": {},
    "set_budget": {"ad_account_id": ID, "mode": st.sampled_from(MODE["set_budget"]), "amount": AMOUNT},
    "reset_budget": {"ad_account_id": ID},
    "set_campaign_budget": {
        "ad_account_id": ID,
        "campaign_id": ID,
        "mode": st.sampled_from(MODE["set_campaign_budget"]),
        "amount": AMOUNT,
    },
}


@pytest.mark.parametrize("type_", FIELDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_command_makes_an_entry_too_long(type_: str, data: st.DataObject) -> None:
    """The command has the longest values that the contract allows, and the rules hold everything that it names."""
    fields = {name: data.draw(values, name) for name, values in FIELDS[type_].items()}
    account = fields.get("ad_account_id") or "x" * 64
    ids = {"command_id": str(UUID(int=7)), "business_center_id": "b" * 64, "issued_at": "2027-03-10T12:00:00Z"}
    actor = {"id": "a" * 64, "role": "admin"}
    message = {**ids, "actor": actor, "type": type_, **{k: v for k, v in fields.items() if v is not None}}
    content = command_content(FINANCE_COMMAND.validate_python(message))
    rules = holding(account, fields.get("ad_credit_id", "x")) if type_ != "open_business_center" else Shard()
    rules.begin(NOON, STANDARD, zones=INSTALLED)
    refused = rules.command(sent_command(content, TOPIC).command, bytes(16), content)
    size = len(json.dumps(content, separators=(",", ":")))
    if size > MOST_CONTENT_BYTES:
        assert refused is not None
        assert (refused.code, str(size) in refused.message, "40960" in refused.message) == ("invalid", True, True)
    rows = encode_entries(rules.entries, SHARD, 1, NOON)
    assert all(len(row) <= MOST_BYTES for row in rows)


def holding(account: str, credit: str) -> Shard:
    """Return a Business Center with an account that has some of everything, and 400 that enabling leaves out."""
    rules = Shard(zones=INSTALLED)
    rules.begin(NOON, STANDARD)
    for type_, fields in (
        ("open_business_center", {"currency": "USD", "time_zone": "UTC", "finance_roles": True}),
        *(("open_ad_account", kind(f"{number:b>64}", False)) for number in range(400)),
        ("open_ad_account", kind(account, True)),
        ("deposit_cash", {"amount": 5 * ONE, "ad_account_id": account}),
        ("set_credit_line", {"limit": 5 * ONE}),
        ("grant_ad_credit", {"ad_credit_id": credit, "amount": ONE}),
        ("set_budget", {"ad_account_id": account, "mode": "custom", "amount": ONE}),
    ):
        command = COMMANDS[type_](business_center_id="b" * 64, role="admin", **fields)
        assert rules.command(command, uuid4().bytes, {}) is None
    return rules


def kind(account: str, owned: bool) -> dict[str, Any]:
    return {
        "ad_account_id": account,
        "billing": "monthly_invoicing",
        "buying_type": "auction",
        "time_zone": "UTC",
        "owned": owned,
    }


def test_a_reason_of_256_characters_beyond_ascii_fits() -> None:
    ledger = PureLedger()
    charged = spend("1", NOON)
    reversal = {**charged[1], "type": "reversal", "event_id": str(uuid4()), "reverses": charged[1]["event_id"]}
    reversal["reason"] = "\U0001f4b8" * 256
    ledger.batch(encoded([*opening(), charged, ("event", reversal)]), NOON)
    assert ledger.entries[-1][0].kind == "reversal"
    assert max(map(len, ledger.encoded())) < 4_000


def test_a_line_that_is_too_long_is_never_encoded() -> None:
    room = MOST_BYTES - ALL_NUMBERS.size
    for length, fits in ((room - 45, True), (room, False)):
        line = Line("k", "b", details="x" * length)
        entry = (line, 1, NOON, bytes(16), 0, None, None)
        if fits:
            assert len(encode_entries([entry], SHARD, 1, NOON)[0]) <= MOST_BYTES
        else:
            with pytest.raises(AssertionError, match="too long"):
                encode_entries([entry], SHARD, 1, NOON)
            assert len(encode_entries([entry], SHARD, 1, NOON, 10**6)) == 1


def test_the_first_version_accepts_commands_of_any_length() -> None:
    campaigns = [f"{number:a>64}" for number in range(900)]
    ledger = PureLedger(FIRST_RULES)
    long = command("grant_voucher", voucher_id="v", amount="1", ad_account_id="a", campaign_ids=campaigns)
    assert ledger.batch(encoded([*opening(), long]), NOON)[-1] == ("accepted", None)
