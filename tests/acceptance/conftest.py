"""The language of the scenarios: what each sentence does or claims, as steps of pytest-bdd.

A step is a coroutine function. It takes the stage and the words of its sentence; the stage runs it on the session's
loop.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
import pytest_bdd
from parse import with_pattern
from pytest_bdd import parsers
from pytest_bdd.parser import Feature, Scenario, Step

from tests.acceptance.platform import Platform, Record
from tests.acceptance.stage import Stage, plain
from tests.model.forms import rfc3339

Table = list[list[str]]
Entity = tuple[str, str | None]  # an account, and one of its campaigns or None
Budget = tuple[str, str | None]  # a mode, and an amount unless it is unlimited


@pytest.fixture(scope="session")
async def loop() -> asyncio.AbstractEventLoop:
    """Return the loop of the session. It runs only while a scenario waits for it."""
    return asyncio.get_running_loop()


@pytest.fixture
def stage(platform: Platform, loop: asyncio.AbstractEventLoop) -> Stage:
    """Return the stage of one scenario. Each module of scenarios has a `platform`."""
    return Stage(platform, loop)


def pytest_bdd_before_step(request: pytest.FixtureRequest, step: Step) -> None:
    if step.type == "when":
        stage: Stage = request.getfixturevalue("stage")
        stage.act()


def pytest_bdd_after_step(request: pytest.FixtureRequest, scenario: Scenario, step: Step) -> None:
    """Fail if the request was refused, unless the next sentence says that it is."""
    stage: Stage = request.getfixturevalue("stage")
    following = [each.name for each in scenario.steps if each.line_number > step.line_number]
    is_expected = following and following[0].startswith("that is refused")
    assert is_expected or not stage.refused, f"{step.name}: refused: {stage.outcome}"


def pytest_bdd_step_error(feature: Feature, step: Step, exception: Exception) -> None:
    exception.add_note(f"{feature.rel_filename}:{step.line_number}: {step.keyword} {step.name}")


# Words: the form of each kind, and its meaning.


def _word(pattern: str, meaning: Callable[[str], Any] = str) -> Callable[[str], Any]:
    word: Callable[[str], Any] = with_pattern(pattern)(lambda text: meaning(text))
    return word


def _moment_us(text: str) -> int:
    clock, _, zone = text.partition(" in ")
    return round(datetime.fromisoformat(clock).replace(tzinfo=ZoneInfo(zone)).timestamp()) * 1_000_000


def _entity(text: str) -> Entity:
    campaign, _, account = text.removeprefix("campaign ").rpartition(" of ")
    return account, campaign or None


def _budget(text: str) -> Budget:
    mode, _, amount = text.partition(" ")
    return mode, amount or None


WORDS = {
    "Name": _word(r"[a-z]+"),
    "Amount": _word(r"-?[0-9.]+"),
    "Moment": _word(r"\S+ \S+ in \S+", _moment_us),
    "Entity": _word(r"(?:campaign [a-z]+ of )?[a-z]+", _entity),
    "Pocket": _word(r"in all|cash|voucher|ad credit|credit available|credit used|credit"),
    "Budget": _word(r"unlimited|[a-z]+ [0-9.]+", _budget),
    "Causes": _word(r"[a-z_]+(?:, [a-z_]+)*", lambda text: text.split(", ")),
    "Feature": _word(r"on prepay|for reservation|not owned"),
    "Zone": _word(r"[A-Z]\S+"),
    "Role": _word(r"[a-z_]+"),
    "Code": _word(r"[a-z_]+"),
    "Count": _word(r"[0-9]+", int),
    "Date": _word(r"[0-9-]+"),
    "Parts": _word(r"[0-9.]+ by [a-z_]+(?:, [0-9.]+ by [a-z_]+)*"),
}


def sentence(*forms: str) -> Callable[[Callable[..., Awaitable[None]]], None]:
    """Make a coroutine function the step of a sentence that may have several forms."""

    def bind(function: Callable[..., Awaitable[None]]) -> None:
        @functools.wraps(function)
        def step(stage: Stage, **words: Any) -> None:
            stage.tell(lambda: function(stage, **words))

        for form in forms:
            pytest_bdd.step(parsers.cfparse(form, extra_types=WORDS), stacklevel=2)(step)

    return bind


# The set-up: Business Centers, accounts and the clock.


@sentence("a Business Center {name:Name}")
async def _(stage: Stage, name: str) -> None:
    stage.center = stage.name(name)
    await stage.ask("open_business_center", currency="USD", time_zone="UTC")


@sentence(
    "an ad account {name:Name}",
    "an ad account {name:Name}, in {zone:Zone}",
    "an ad account {name:Name}, {feature:Feature}",
)
async def _(stage: Stage, name: str, feature: str = "", zone: str = "UTC") -> None:
    stage.entities.append((stage.name(name), None))
    await stage.ask(
        "open_ad_account",
        ad_account_id=stage.name(name),
        billing="prepay" if feature == "on prepay" else "monthly_invoicing",
        buying_type="reservation" if feature == "for reservation" else "auction",
        time_zone=zone,
        owned=feature != "not owned",
    )


@sentence("it is {moment_us:Moment}")
async def _(stage: Stage, moment_us: int) -> None:
    """Move the clock to this moment.

    The clock of a running system does not go back. Scenarios in which a day turns run one after the other, in the order
    of their files. So each has a time zone whose day turns later than that of the scenario before.
    """
    assert not stage.entities or await stage.platform.now_us() < moment_us, "another scenario has moved the clock"
    await stage.platform.reach(moment_us)
    stage.is_patient = True


# Finance commands.


@sentence("{amount:Amount} cash is deposited to {name:Name}")
async def _(stage: Stage, amount: str, name: str) -> None:
    await stage.ask("deposit_cash", amount=amount, ad_account_id=stage.holder(name))


@sentence("the credit line of {name:Name} is set to {limit:Amount}")
async def _(stage: Stage, name: str, limit: str) -> None:
    await stage.ask("set_credit_line", limit=limit)


@sentence("{amount:Amount} is paid on the credit line of {name:Name}")
async def _(stage: Stage, amount: str, name: str) -> None:
    await stage.ask("repay_credit", amount=amount)


@sentence(
    "voucher {grant:Name} of {amount:Amount} is granted to {name:Name}",
    "voucher {grant:Name} of {amount:Amount} is granted to {name:Name}, until {end_us:Moment}",
    "voucher {grant:Name} of {amount:Amount} is granted to {name:Name}, for campaign {campaign:Name}",
)
async def _(
    stage: Stage, grant: str, amount: str, name: str, campaign: str | None = None, end_us: int | None = None
) -> None:
    await stage.ask(
        "grant_voucher",
        voucher_id=grant,
        amount=amount,
        ad_account_id=stage.holder(name),
        campaign_ids=[campaign] if campaign else None,
        expires_at=None if end_us is None else rfc3339(end_us),
    )


@sentence("ad credit {grant:Name} of {amount:Amount} is granted to {name:Name}")
async def _(stage: Stage, grant: str, amount: str, name: str) -> None:
    await stage.ask("grant_ad_credit", ad_credit_id=grant, amount=amount)


@sentence("{amount:Amount} of ad credit {grant:Name} is allocated to {name:Name}")
async def _(stage: Stage, amount: str, grant: str, name: str) -> None:
    await stage.ask("allocate_ad_credit", ad_credit_id=grant, ad_account_id=stage.name(name), amount=amount)


@sentence("automatic allocation is {change:Code} for {name:Name}")
async def _(stage: Stage, change: str, name: str) -> None:
    await stage.ask(f"{change.removesuffix('d')}_automatic_allocation")


@sentence(
    "the budget of {name:Name} is set to {budget:Budget}",
    "a {role:Role} sets the budget of {name:Name} to {budget:Budget}",
)
async def _(stage: Stage, name: str, budget: Budget, role: str = "admin") -> None:
    mode, amount = budget
    await stage.ask("set_budget", role=role, ad_account_id=stage.name(name), mode=mode, amount=amount)


@sentence("the budget of {name:Name} is changed {times:Count} times")
async def _(stage: Stage, name: str, times: int) -> None:
    for number in range(times):
        await stage.ask("set_budget", ad_account_id=stage.name(name), mode="daily", amount=str(number + 1))
        assert not stage.refused


@sentence("the budget of {name:Name} is reset")
async def _(stage: Stage, name: str) -> None:
    await stage.ask("reset_budget", ad_account_id=stage.name(name))


@sentence("the budget of campaign {campaign:Name} of {name:Name} is set to {budget:Budget}")
async def _(stage: Stage, campaign: str, name: str, budget: Budget) -> None:
    mode, amount = budget
    stage.entities.append((stage.name(name), campaign))
    await stage.ask(
        "set_campaign_budget", ad_account_id=stage.name(name), campaign_id=campaign, mode=mode, amount=amount
    )


@sentence("the same command is sent again")
async def _(stage: Stage) -> None:
    first = stage.outcome
    await stage.send(stage.sent)
    stage.first_outcome = first


# Spends and reversals.


@sentence(
    "campaign {campaign:Name} of {name:Name} spends {amount:Amount}",
    "campaign {campaign:Name} of {name:Name} spends {amount:Amount} at {moment_us:Moment}",
)
async def _(stage: Stage, campaign: str, name: str, amount: str, moment_us: int | None = None) -> None:
    stage.spend = {
        "type": "spend",
        "event_id": str(uuid4()),
        "business_center_id": stage.center,
        "ad_account_id": stage.name(name),
        "campaign_id": campaign,
        "amount": amount,
        "currency": "USD",
        "occurred_at": rfc3339(await stage.platform.now_us() if moment_us is None else moment_us),
    }
    await stage.publish(stage.spend)
    assert stage.fate == "recorded"


@sentence(
    "that spend is sent again",
    "that spend is sent again with amount {amount:Amount}",
)
async def _(stage: Stage, amount: str | None = None) -> None:
    await stage.publish({**stage.spend, "amount": amount or stage.spend["amount"]})


@sentence("{amount:Amount} of that spend is reversed")
async def _(stage: Stage, amount: str) -> None:
    now = rfc3339(await stage.platform.now_us())
    names = {"type": "reversal", "event_id": str(uuid4()), "reverses": stage.spend["event_id"]}
    await stage.publish({**stage.spend, **names, "amount": amount, "occurred_at": now})
    assert stage.fate == "recorded"


# Claims: answers to commands and events.


@sentence(
    "that is refused",
    "that is refused as {code:Code}",
)
async def _(stage: Stage, code: str | None = None) -> None:
    assert stage.outcome[0] == "rejected"
    assert code in (None, stage.outcome[1]), stage.outcome
    stage.refused = False


@sentence("it has the same outcome")
async def _(stage: Stage) -> None:
    assert stage.outcome == stage.first_outcome


@sentence("nothing is written for {name:Name}")
async def _(stage: Stage, name: str) -> None:
    assert len(await stage.platform.ledger(stage.center)) == stage.written_before


@sentence("it is quarantined as {reason:Code}")
async def _(stage: Stage, reason: str) -> None:
    assert stage.fate == f"quarantined:{reason}"


@sentence("that is paid by")
async def _(stage: Stage, datatable: Table) -> None:
    await _check_entries(stage, datatable, sign=-1)


@sentence("that is returned to")
async def _(stage: Stage, datatable: Table) -> None:
    await _check_entries(stage, datatable, sign=1)


async def _check_entries(stage: Stage, table: Table, sign: int) -> None:
    entries = [
        [entry["kind"], entry["holder"], entry["pocket"], sign * plain(entry["amount"])]
        for entry in await stage.money()
    ]
    assert entries == [[*names, plain(amount)] for *names, amount in table]


@sentence("that is billed {amount:Amount} in full")
async def _(stage: Stage, amount: str) -> None:
    await _check_bill(stage, plain(amount), {})


@sentence("that is billed {amount:Amount} and overdelivered {parts:Parts}")
async def _(stage: Stage, amount: str, parts: str) -> None:
    split = [part.split(" by ") for part in parts.split(", ")]
    await _check_bill(stage, plain(amount), {cause: plain(over) for over, cause in split})


async def _check_bill(stage: Stage, billed: int, overdelivered: dict[str, int]) -> None:
    entries = await stage.money()
    over = {each["cause"]: plain(each["amount"]) for each in entries if each["kind"] == "overdelivery"}
    assert over == overdelivered
    assert -sum(plain(each["amount"]) for each in entries if each["kind"] != "overdelivery") == billed


@sentence("that is counted in the period that begins on {day:Date}")
async def _(stage: Stage, day: str) -> None:
    assert {entry["period"] for entry in await stage.money()} == {day}


@sentence("{amount:Amount} of voucher {grant:Name} of {name:Name} are forfeited")
async def _(stage: Stage, amount: str, grant: str, name: str) -> None:
    ledger = await stage.platform.ledger(stage.center)
    expired = [entry for entry in ledger if entry["kind"] == "expiry" and entry["grant_id"] == grant]
    assert [plain(entry["amount"]) for entry in expired] == [-plain(amount)]


# Claims: balances, budgets, figures.


async def _answer_for(stage: Stage, entity: Entity) -> Record:
    account, campaign = entity
    if campaign is not None:
        return await stage.platform.campaign(stage.name(account), campaign)
    return await stage.platform.ad_account(stage.name(account))


@sentence("{name:Name} has {amount:Amount} {pocket:Pocket}")
async def _(stage: Stage, name: str, amount: str, pocket: str) -> None:
    account = stage.holder(name)
    answer = await (stage.platform.ad_account(account) if account else stage.platform.business_center(stage.center))
    balance = answer["balance"]
    line = {"credit available": "available", "credit used": "used"}.get(pocket)
    shown = balance["credit_line"][line] if line else balance[pocket.replace("in all", "available").replace(" ", "_")]
    assert plain(shown) == plain(amount)


@sentence("the budget of {entity:Entity} is {mode:Code} {amount:Amount}, {spent:Amount} spent, {left:Amount} remaining")
async def _(stage: Stage, entity: Entity, mode: str, amount: str, spent: str, left: str) -> None:
    budget = (await _answer_for(stage, entity))["budget"]
    shown = [plain(budget[field]) for field in ("amount", "spent", "remaining")]
    assert [budget["mode"], *shown] == [mode, plain(amount), plain(spent), plain(left)]


@sentence("{name:Name} has {changes:Count} budget changes left today")
async def _(stage: Stage, name: str, changes: int) -> None:
    budget = (await stage.platform.ad_account(stage.name(name)))["budget"]
    assert (budget["changes_remaining"], budget["changes_today"]) == (changes, 10 - changes)


@sentence("the spend of {name:Name} is gross {gross:Amount}, billed {billed:Amount}, overdelivered {over:Amount}")
async def _(stage: Stage, name: str, gross: str, billed: str, over: str) -> None:
    account = stage.holder(name)
    answer = await (stage.platform.ad_account(account) if account else stage.platform.business_center(stage.center))
    shown = {field: plain(amount) for field, amount in answer["spend"].items()}
    assert shown == {"gross": plain(gross), "billed": plain(billed), "overdelivered": plain(over)}


@sentence("the cash spend of {name:Name} is followed")
async def _(stage: Stage, name: str) -> None:
    await stage.platform.follow_cash_spend(stage.name(name), "USD")


@sentence("the cash spend of {name:Name} is {amount:Amount}")
async def _(stage: Stage, name: str, amount: str) -> None:
    assert plain(await stage.platform.cash_spend(stage.name(name))) == plain(amount)


# Claims: delivery.


@sentence("{entity:Entity} delivers")
async def _(stage: Stage, entity: Entity) -> None:
    await _check_delivery(stage, entity, delivering=True, causes=[])


@sentence("{entity:Entity} is paused by {causes:Causes}")
async def _(stage: Stage, entity: Entity, causes: list[str]) -> None:
    await _check_delivery(stage, entity, delivering=False, causes=causes)


@sentence("{entity:Entity} stands still with its account")
async def _(stage: Stage, entity: Entity) -> None:
    await _check_delivery(stage, entity, delivering=False, causes=[])


async def _check_delivery(stage: Stage, entity: Entity, *, delivering: bool, causes: list[str]) -> None:
    delivery = (await _answer_for(stage, entity))["delivery"]
    assert (delivery["delivering"], delivery["causes"]) == (delivering, causes)


@sentence("{name:Name} takes part in automatic allocation")
async def _(stage: Stage, name: str) -> None:
    assert (await stage.platform.ad_account(stage.name(name)))["automatic_allocation"] is True


@sentence("{name:Name} takes no part in automatic allocation")
async def _(stage: Stage, name: str) -> None:
    assert (await stage.platform.ad_account(stage.name(name)))["automatic_allocation"] is False


@sentence("left out of automatic allocation of {name:Name} are")
async def _(stage: Stage, name: str, datatable: Table) -> None:
    answer = (await stage.platform.business_center(stage.center))["automatic_allocation"]
    left_out = [[each["ad_account_id"], each["reason"]] for each in answer["left_out"]]
    assert sorted(left_out) == sorted([stage.name(account), reason] for account, reason in datatable)


@sentence("the signals of {entity:Entity} since then are")
async def _(stage: Stage, entity: Entity, datatable: Table) -> None:
    assert await stage.signals(*entity) == datatable


@sentence("nothing is signalled for {entity:Entity}")
async def _(stage: Stage, entity: Entity) -> None:
    assert await stage.signals(*entity) == []
