"""The outside checker accepts a sound ledger, and finds each kind of damage."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256

import pytest

from tests.chaos.checker import judge
from tests.chaos.journal import Commanded, Journal, Published
from tests.chaos.observed import Batch, Entry, Observed, Signal

CENTER, ACCOUNT, CAMPAIGN = "bc", "account", "spring"
DEPOSIT, FIRST, SECOND, REVERSAL = (f"00000000-0000-4000-8000-00000000000{number}" for number in range(1, 5))
BAD = ("malformed", b"{")

Damage = Callable[[Journal, Observed], None]


def entry(position: int, kind: str, amount: int | None, source: str | None, part: int = 0, /, **fields: str) -> Entry:
    ids = {"account": ACCOUNT, "campaign": CAMPAIGN, **fields}
    return Entry(
        shard=0,
        position=position,
        amount=amount,
        recorded_at=position,
        source=source,
        part=part,
        day=None,
        kind=kind,
        holder=ids.get("holder"),
        pocket=ids.get("pocket"),
        center=CENTER,
        account=ids["account"] or None,
        campaign=ids["campaign"] or None,
        reverses=None,
        details=ids.get("details"),
        leaf=sha256(str(position).encode()).digest(),
    )


def node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def sound() -> tuple[Journal, Observed]:
    """Return a sound state: a deposit of 10, spends of 4 and 8 (which pauses), a reversal of the 4, a bad record."""
    paid = {"holder": "ad_account", "pocket": "cash"}
    money = {**paid, "campaign": ""}
    entries = [
        entry(1, "deposit", 10_000_000, DEPOSIT, **money),
        entry(2, "cash_debit", -4_000_000, FIRST, **paid),
        entry(3, "cash_debit", -6_000_000, SECOND, **paid),
        entry(4, "overdelivery", 2_000_000, SECOND, 1),
        entry(5, "pause", None, SECOND, 2, campaign="", details=json.dumps({"causes": ["ad_account_balance"]})),
        entry(6, "reversal", 4_000_000, REVERSAL, **paid),
        entry(7, "resume", None, REVERSAL, 1, campaign="", details=json.dumps({"causes": []})),
    ]
    h = [each.leaf for each in entries]
    first_root = node(node(node(h[0], h[1]), node(h[2], h[3])), h[4])
    last_root = node(node(node(h[0], h[1]), node(h[2], h[3])), node(node(h[4], h[5]), h[6]))
    answer = {"status": "accepted", "code": None, "shard": 0, "position": 1}
    spend = {"gross": "8.000000", "billed": "6.000000", "overdelivered": "2.000000"}
    nothing = {"cash": "0.000000", "voucher": "0.000000", "ad_credit": "0.000000"}
    delivery: dict[str, list[str]] = {"causes": []}
    seen = Observed(
        entries=entries,
        batches=[Batch(0, 1, 5, first_root, 1), Batch(0, 6, 7, last_root, 2)],
        outcomes=[{"command_id": DEPOSIT, "first": True, **answer}],
        told_outcomes=[{"command_id": DEPOSIT, **answer}],
        quarantine=[BAD],
        signals=[told(5, ["ad_account_balance"]), told(7, [])],
        centers={
            CENTER: {"spend": spend, "balance": {**nothing, "credit_line": {"available": "0.000000"}}},
        },
        accounts={
            ACCOUNT: {
                "spend": spend,
                "balance": {**nothing, "cash": "4.000000", "credit": "0.000000"},
                "delivery": delivery,
            }
        },
        campaigns={(ACCOUNT, CAMPAIGN): {"spend": spend, "delivery": delivery}},
    )
    command = {"type": "deposit_cash", "amount": "10"}
    journal = Journal(
        events={
            FIRST: published("spend", 4_000_000, 0),
            SECOND: published("spend", 8_000_000, 1),
            REVERSAL: published("reversal", 4_000_000, 2),
        },
        commands={DEPOSIT: Commanded(command, [answer])},
        bad={BAD: 1},
        accounts={ACCOUNT: CENTER},
    )
    return journal, seen


def told(position: int, causes: list[str]) -> Signal:
    return Signal(f"ad_account/{ACCOUNT}", {"position": position, "causes": causes, "delivering": not causes})


def published(type_: str, amount: int, offset: int) -> Published:
    ids = {"business_center_id": CENTER, "ad_account_id": ACCOUNT, "campaign_id": CAMPAIGN}
    return Published({"type": type_, **ids}, amount, 0, [(0, offset)])


def test_a_sound_ledger_passes() -> None:
    assert not judge(*sound())


def drop(position: int) -> Damage:
    def damage(_journal: Journal, seen: Observed) -> None:
        seen.entries = [each for each in seen.entries if each.position != position]

    return damage


def drop_spend_whole(_journal: Journal, seen: Observed) -> None:
    """Remove a spend as if it had never been consumed, so that positions have no gap."""
    seen.entries = [each for each in seen.entries if each.source != FIRST]
    for position, each in enumerate(seen.entries, 1):
        each.position = position


def charge_twice(_journal: Journal, seen: Observed) -> None:
    seen.entries.append(replace(seen.entries[1], position=8, recorded_at=8))


def repeat_position(_journal: Journal, seen: Observed) -> None:
    seen.entries.insert(2, copy.copy(seen.entries[1]))


def charge_too_much(_journal: Journal, seen: Observed) -> None:
    seen.entries[1].amount = -4_000_001


def publish_in_another_order(journal: Journal, _seen: Observed) -> None:
    journal.events[FIRST].places = [(0, 5)]


def move_time_backwards(_journal: Journal, seen: Observed) -> None:
    seen.entries[4].recorded_at = 1


def tear_apart(_journal: Journal, seen: Observed) -> None:
    seen.entries[3].source, seen.entries[5].source = REVERSAL, SECOND


def change_root(_journal: Journal, seen: Observed) -> None:
    seen.batches[1].root = bytes(32)


def skip_batch(_journal: Journal, seen: Observed) -> None:
    seen.batches[1].first = 7


def old_epoch_writes(_journal: Journal, seen: Observed) -> None:
    seen.batches[1].epoch = 0


def add_a_foreign_entry(journal: Journal, _seen: Observed) -> None:
    del journal.events[FIRST]


def lose_command(_journal: Journal, seen: Observed) -> None:
    seen.outcomes.clear()


def decide_twice(_journal: Journal, seen: Observed) -> None:
    seen.outcomes *= 2


def keep_outcome_back(_journal: Journal, seen: Observed) -> None:
    seen.told_outcomes.clear()


def change_an_answer(journal: Journal, _seen: Observed) -> None:
    journal.commands[DEPOSIT].answers.append({"status": "rejected", "code": "invalid", "shard": 0, "position": 1})


def deposit_less(_journal: Journal, seen: Observed) -> None:
    seen.entries[0].amount = 9_000_000


def lose_bad_record(_journal: Journal, seen: Observed) -> None:
    seen.quarantine.clear()


def set_aside_twice(_journal: Journal, seen: Observed) -> None:
    seen.quarantine *= 2


def set_aside_a_good_one(_journal: Journal, seen: Observed) -> None:
    seen.quarantine.append(("too_old", b"{}"))


def lose_signal(_journal: Journal, seen: Observed) -> None:
    del seen.signals[0]


def swap_signals(_journal: Journal, seen: Observed) -> None:
    seen.signals.reverse()


def end_with_a_repetition(_journal: Journal, seen: Observed) -> None:
    """Repeat an old signal at the end. A compacted topic would keep it, so that is a wrong state."""
    seen.signals.append(seen.signals[0])


def misread_spend(_journal: Journal, seen: Observed) -> None:
    seen.centers[CENTER]["spend"] = {**seen.centers[CENTER]["spend"], "gross": "8.000001"}


def misread_balance(_journal: Journal, seen: Observed) -> None:
    seen.accounts[ACCOUNT]["balance"]["cash"] = "4.000001"


def misread_delivery(_journal: Journal, seen: Observed) -> None:
    seen.accounts[ACCOUNT]["delivery"] = {"causes": ["ad_account_balance"]}


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("lost", drop(2)),
        ("lost", drop_spend_whole),
        ("doubled", charge_twice),
        ("doubled", repeat_position),
        ("wrong", charge_too_much),
        ("reordered", publish_in_another_order),
        ("reordered", move_time_backwards),
        ("wrong", tear_apart),
        ("wrong", change_root),
        ("wrong", skip_batch),
        ("reordered", old_epoch_writes),
        ("wrong", add_a_foreign_entry),
        ("lost", lose_command),
        ("doubled", decide_twice),
        ("lost", keep_outcome_back),
        ("wrong", change_an_answer),
        ("wrong", deposit_less),
        ("lost", lose_bad_record),
        ("doubled", set_aside_twice),
        ("wrong", set_aside_a_good_one),
        ("lost", lose_signal),
        ("reordered", swap_signals),
        ("wrong", end_with_a_repetition),
        ("wrong", misread_spend),
        ("wrong", misread_balance),
        ("wrong", misread_delivery),
    ],
)
def test_every_kind_of_damage_is_found(kind: str, damage: Damage) -> None:
    journal, seen = sound()
    damage(journal, seen)
    assert getattr(judge(journal, seen), kind)
