"""The language of the scenarios: what each sentence does or claims.

A scenario is a file of sentences. A sentence that asks for something (`100 cash is deposited to shop`) sends
a finance command or publishes an event; it has to succeed unless the next sentence says that it is refused.
Every other sentence claims something that has to be true. Names such as `shop` are the scenario's own:
each scenario has its own Business Center, so that all can be told to one running system.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

from tests.acceptance.platform import Platform, Record
from tests.model.forms import micros, rfc3339

Table = list[list[str]]
Step = Callable[..., Awaitable[None]]

PATIENCE_SECONDS = 10.0
KEYWORD = re.compile(r"(Given|When|Then|And) (.*)")
WORDS = {
    "NAME": r"[a-z]+",
    "AMOUNT": r"-?[0-9.]+",
    "MOMENT": r"\S+ \S+ in \S+",
    "POCKET": r"in all|cash|voucher|ad credit|credit available|credit used|credit",
    "BUDGET": r"unlimited|[a-z]+ [0-9.]+",
    "CAUSES": r"[a-z_]+(?:, [a-z_]+)*",
    "FEATURE": r"on prepay|for reservation|not owned",
    "ZONE": r"[A-Z]\S+",
    "WORD": r"[a-z_]+",
    "COUNT": r"[0-9]+",
    "DATE": r"[0-9-]+",
    "ANY": r".*",
}
_STEPS: list[tuple[re.Pattern[str], Step]] = []


def step(sentence: str) -> Callable[[Step], Step]:
    """Binds a sentence to a function. `<word:KIND>` is an argument, `[ ... ]` may be left out."""
    pattern = re.sub(r"\[(.*?)\]", r"(?:\1)?", sentence)
    pattern = re.sub(r"<([a-z_]+):([A-Z]+)>", lambda hit: f"(?P<{hit[1]}>{WORDS[hit[2]]})", pattern)

    def bind(function: Step) -> Step:
        _STEPS.append((re.compile(pattern), function))
        return function

    return bind


@dataclass
class Line:
    """One sentence, with the table that follows it."""

    keyword: str
    text: str
    table: Table


@dataclass
class Scenario:
    """A scenario of the domain page."""

    number: int
    title: str
    lines: list[Line]

    def __str__(self) -> str:
        return f"{self.number:02d}: {self.title}"

    async def play(self, platform: Platform) -> None:
        """Raises AssertionError, naming the sentence, where the platform does otherwise."""
        stage = Stage(self, platform)
        for line in self.lines:
            try:
                await stage.play(line)
            except AssertionError as error:
                error.add_note(f"scenario {self}\n  {line.keyword} {line.text}")
                raise
        assert not stage.refused, f"refused: {stage.outcome}"


def read_scenario(path: Path) -> Scenario:
    """Reads a file of sentences."""
    title, *rest = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    number, _, name = title.removeprefix("Scenario ").partition(": ")
    lines: list[Line] = []
    for text in rest:
        if text.startswith("|"):
            lines[-1].table.append([cell.strip() for cell in text.strip("|").split("|")])
            continue
        sentence = KEYWORD.fullmatch(text)
        assert sentence is not None, f"{path.name}: {text}"
        keyword = lines[-1].keyword if sentence[1] == "And" else sentence[1]
        lines.append(Line(keyword, sentence[2], []))
    return Scenario(int(number), name, lines)


SCENARIOS = [read_scenario(path) for path in sorted((Path(__file__).parent / "scenarios").glob("*.feature"))]


def plain(amount: str) -> int:
    """An amount as the scenario writes it, in micros."""
    return -micros(amount[1:]) if amount.startswith("-") else micros(amount)


def moment(text: str) -> int:
    """`2027-03-31 23:59:58 in Asia/Tokyo`, in microseconds since the Unix epoch."""
    clock, _, zone = text.partition(" in ")
    return round(datetime.fromisoformat(clock).replace(tzinfo=ZoneInfo(zone)).timestamp()) * 1_000_000


class Stage:
    """A scenario in play: its names, what was sent last, what came of it."""

    def __init__(self, scenario: Scenario, platform: Platform) -> None:
        self.platform = platform
        self.number = scenario.number
        self.center = ""
        self.outcome: tuple[str, str | None] = ("accepted", None)
        self.first_outcome: tuple[str, str | None] = self.outcome
        self.refused = False
        self.sent: Record = {}
        self.spend: Record = {}
        self.event: Record = {}
        self.fate = ""
        self.written_before = 0
        self.seen: dict[tuple[str, str | None], int] = {}
        self.entities: list[tuple[str, str | None]] = []
        self.is_patient = False
        self._acting = False

    def name(self, name: str) -> str:
        """The platform's id for a name of the scenario."""
        return f"s{self.number:02d}-{name}"

    async def play(self, line: Line) -> None:
        """Does what a sentence says, or checks what it claims."""
        if self.refused:
            assert line.text.startswith("that is refused"), f"refused: {self.outcome}"
        if line.keyword == "When" and not self._acting:
            await self._remember_signals()
        self._acting = self._acting or line.keyword == "When"
        for pattern, function in _STEPS:
            match = pattern.fullmatch(line.text)
            if match is not None:
                tables = {"table": line.table} if line.table else {}
                await self._try(lambda: function(self, **match.groupdict(), **tables))  # noqa: B023
                return
        raise AssertionError("nobody knows this sentence")

    async def _try(self, sentence: Callable[[], Awaitable[None]]) -> None:
        """What the clock does, nobody answers for: after it has moved, a claim may take a moment to come true."""
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return await sentence()
            except AssertionError:
                if not self.is_patient or time.monotonic() > give_up_at:
                    raise
            await asyncio.sleep(0.02)

    async def _remember_signals(self) -> None:
        for entity in self.entities:
            self.seen[entity] = len(await self.platform.signals(*entity))

    async def ask(self, type_: str, *, role: str = "admin", **fields: Any) -> None:
        """Sends a command. What is None or absent is left out."""
        now = await self.platform.now_us()
        command = {
            "command_id": str(uuid4()),
            "type": type_,
            "business_center_id": self.center,
            "issued_at": rfc3339(now),
            "actor": {"id": "somebody", "role": role},
            **{name: value for name, value in fields.items() if value is not None},
        }
        await self.send(command)

    async def send(self, command: Record) -> None:
        """Sends a command as it is."""
        if command["type"] != "open_business_center":
            self.written_before = len(await self.platform.ledger(self.center))
        self.sent = command
        self.is_patient = False
        self.outcome = await self.platform.command(command)
        self.refused = self.outcome[0] == "rejected"

    async def publish(self, event: Record) -> None:
        """Publishes a spend or reversal, which becomes what `that` means."""
        self.event = event
        self.is_patient = False
        self.fate = await self.platform.publish(event)

    def holder(self, name: str) -> str | None:
        """The ad account of a name; None for the Business Center."""
        return None if self.name(name) == self.center else self.name(name)

    async def signals(self, account: str, campaign: str | None) -> list[list[str]]:
        """What was signalled since the first `When`: change, cause, causes after it."""
        entity = self.name(account), campaign
        signals = (await self.platform.signals(*entity))[self.seen.get(entity, 0) :]
        return [[each["change"], each["cause"], ", ".join(each["causes"])] for each in signals]

    async def money(self) -> list[Record]:
        """The money entries of the last spend or reversal."""
        entries = await self.platform.entries(self.event["event_id"])
        return [entry for entry in entries if entry["kind"] not in ("pause", "resume")]


# Who there is.


@step("a Business Center <name:NAME>")
async def _(stage: Stage, name: str) -> None:
    stage.center = stage.name(name)
    await stage.ask("open_business_center", currency="USD", time_zone="UTC")


@step("an ad account <name:NAME>[, <feature:FEATURE>][, in <zone:ZONE>]")
async def _(stage: Stage, name: str, feature: str | None, zone: str | None) -> None:
    stage.entities.append((stage.name(name), None))
    await stage.ask(
        "open_ad_account",
        ad_account_id=stage.name(name),
        billing="prepay" if feature == "on prepay" else "monthly_invoicing",
        buying_type="reservation" if feature == "for reservation" else "auction",
        time_zone=zone or "UTC",
        owned=feature != "not owned",
    )


@step("it is <when:MOMENT>")
async def _(stage: Stage, when: str) -> None:
    await stage.platform.reach(moment(when))
    stage.is_patient = True


# What is asked for.


@step("<amount:AMOUNT> cash is deposited to <name:NAME>")
async def _(stage: Stage, amount: str, name: str) -> None:
    await stage.ask("deposit_cash", amount=amount, ad_account_id=stage.holder(name))


@step("the credit line of <name:NAME> is set to <limit:AMOUNT>")
async def _(stage: Stage, name: str, limit: str) -> None:
    await stage.ask("set_credit_line", limit=limit)


@step("<amount:AMOUNT> is paid on the credit line of <name:NAME>")
async def _(stage: Stage, amount: str, name: str) -> None:
    await stage.ask("repay_credit", amount=amount)


@step(
    "voucher <grant:NAME> of <amount:AMOUNT> is granted to <name:NAME>"
    "[, for campaign <campaign:NAME>][, until <end:MOMENT>]"
)
async def _(stage: Stage, grant: str, amount: str, name: str, campaign: str | None, end: str | None) -> None:
    await stage.ask(
        "grant_voucher",
        voucher_id=grant,
        amount=amount,
        ad_account_id=stage.holder(name),
        campaign_ids=[campaign] if campaign else None,
        expires_at=rfc3339(moment(end)) if end else None,
    )


@step("ad credit <grant:NAME> of <amount:AMOUNT> is granted to <name:NAME>")
async def _(stage: Stage, grant: str, amount: str, name: str) -> None:
    await stage.ask("grant_ad_credit", ad_credit_id=grant, amount=amount)


@step("<amount:AMOUNT> of ad credit <grant:NAME> is allocated to <name:NAME>")
async def _(stage: Stage, amount: str, grant: str, name: str) -> None:
    await stage.ask("allocate_ad_credit", ad_credit_id=grant, ad_account_id=stage.name(name), amount=amount)


@step("automatic allocation is <change:WORD> for <name:NAME>")
async def _(stage: Stage, change: str, name: str) -> None:
    await stage.ask(f"{change.removesuffix('d')}_automatic_allocation")


@step("[a <role:WORD> sets ]the budget of <name:NAME> [is set ]to <budget:BUDGET>")
async def _(stage: Stage, role: str | None, name: str, budget: str) -> None:
    mode, _, amount = budget.partition(" ")
    await stage.ask(
        "set_budget", role=role or "admin", ad_account_id=stage.name(name), mode=mode, amount=amount or None
    )


@step("the budget of <name:NAME> is changed <times:COUNT> times")
async def _(stage: Stage, name: str, times: str) -> None:
    for number in range(int(times)):
        await stage.ask("set_budget", ad_account_id=stage.name(name), mode="daily", amount=str(number + 1))
        assert not stage.refused


@step("the budget of <name:NAME> is reset")
async def _(stage: Stage, name: str) -> None:
    await stage.ask("reset_budget", ad_account_id=stage.name(name))


@step("the budget of campaign <campaign:NAME> of <name:NAME> is set to <budget:BUDGET>")
async def _(stage: Stage, campaign: str, name: str, budget: str) -> None:
    mode, _, amount = budget.partition(" ")
    stage.entities.append((stage.name(name), campaign))
    await stage.ask(
        "set_campaign_budget", ad_account_id=stage.name(name), campaign_id=campaign, mode=mode, amount=amount or None
    )


@step("the same command is sent again")
async def _(stage: Stage) -> None:
    first = stage.outcome
    await stage.send(stage.sent)
    stage.first_outcome = first


# What ad delivery reports.


@step("campaign <campaign:NAME> of <name:NAME> spends <amount:AMOUNT>[ at <when:MOMENT>]")
async def _(stage: Stage, campaign: str, name: str, amount: str, when: str | None) -> None:
    stage.spend = {
        "type": "spend",
        "event_id": str(uuid4()),
        "business_center_id": stage.center,
        "ad_account_id": stage.name(name),
        "campaign_id": campaign,
        "amount": amount,
        "currency": "USD",
        "occurred_at": rfc3339(moment(when) if when else await stage.platform.now_us()),
    }
    await stage.publish(stage.spend)
    assert stage.fate == "recorded"


@step("that spend is sent again[ with amount <amount:AMOUNT>]")
async def _(stage: Stage, amount: str | None) -> None:
    await stage.publish({**stage.spend, "amount": amount or stage.spend["amount"]})


@step("<amount:AMOUNT> of that spend is reversed")
async def _(stage: Stage, amount: str) -> None:
    now = rfc3339(await stage.platform.now_us())
    names = {"type": "reversal", "event_id": str(uuid4()), "reverses": stage.spend["event_id"]}
    await stage.publish({**stage.spend, **names, "amount": amount, "occurred_at": now})
    assert stage.fate == "recorded"


# What has to be true: answers to commands and events.


@step("that is refused[ as <code:WORD>]")
async def _(stage: Stage, code: str | None) -> None:
    assert stage.outcome[0] == "rejected"
    assert code in (None, stage.outcome[1]), stage.outcome
    stage.refused = False


@step("it has the same outcome")
async def _(stage: Stage) -> None:
    assert stage.outcome == stage.first_outcome


@step("nothing is written for <name:NAME>")
async def _(stage: Stage, name: str) -> None:
    assert len(await stage.platform.ledger(stage.center)) == stage.written_before


@step("it is quarantined as <reason:WORD>")
async def _(stage: Stage, reason: str) -> None:
    assert stage.fate == f"quarantined:{reason}"


@step("that is paid by")
async def _(stage: Stage, table: Table) -> None:
    await _check_entries(stage, table, sign=-1)


@step("that is returned to")
async def _(stage: Stage, table: Table) -> None:
    await _check_entries(stage, table, sign=1)


async def _check_entries(stage: Stage, table: Table, sign: int) -> None:
    entries = [
        [entry["kind"], entry["holder"], entry["pocket"], sign * plain(entry["amount"])]
        for entry in await stage.money()
    ]
    assert entries == [[*names, plain(amount)] for *names, amount in table]


@step("that is billed <amount:AMOUNT> in full")
async def _(stage: Stage, amount: str) -> None:
    await _check_bill(stage, plain(amount), {})


@step("that is billed <amount:AMOUNT> and overdelivered <parts:ANY>")
async def _(stage: Stage, amount: str, parts: str) -> None:
    split = [part.split(" by ") for part in parts.split(", ")]
    await _check_bill(stage, plain(amount), {cause: plain(over) for over, cause in split})


async def _check_bill(stage: Stage, billed: int, overdelivered: dict[str, int]) -> None:
    entries = await stage.money()
    over = {each["cause"]: plain(each["amount"]) for each in entries if each["kind"] == "overdelivery"}
    assert over == overdelivered
    assert -sum(plain(each["amount"]) for each in entries if each["kind"] != "overdelivery") == billed


@step("that is counted in the period that begins on <day:DATE>")
async def _(stage: Stage, day: str) -> None:
    assert {entry["period"] for entry in await stage.money()} == {day}


@step("<amount:AMOUNT> of voucher <grant:NAME> of <name:NAME> are forfeited")
async def _(stage: Stage, amount: str, grant: str, name: str) -> None:
    ledger = await stage.platform.ledger(stage.center)
    expired = [entry for entry in ledger if entry["kind"] == "expiry" and entry["grant_id"] == grant]
    assert [plain(entry["amount"]) for entry in expired] == [-plain(amount)]


# What has to be true: balances, budgets, figures.


@step("<name:NAME> has <amount:AMOUNT> <pocket:POCKET>")
async def _(stage: Stage, name: str, amount: str, pocket: str) -> None:
    account = stage.holder(name)
    answer = await (stage.platform.ad_account(account) if account else stage.platform.business_center(stage.center))
    balance = answer["balance"]
    line = {"credit available": "available", "credit used": "used"}.get(pocket)
    shown = balance["credit_line"][line] if line else balance[pocket.replace("in all", "available").replace(" ", "_")]
    assert plain(shown) == plain(amount)


@step(
    "the budget of [campaign <campaign:NAME> of ]<name:NAME> is <mode:WORD> <amount:AMOUNT>, "
    "<spent:AMOUNT> spent, <left:AMOUNT> remaining"
)
async def _(stage: Stage, campaign: str | None, name: str, mode: str, amount: str, spent: str, left: str) -> None:
    account = stage.name(name)
    answer = await (stage.platform.campaign(account, campaign) if campaign else stage.platform.ad_account(account))
    budget = answer["budget"]
    shown = [plain(budget[field]) for field in ("amount", "spent", "remaining")]
    assert [budget["mode"], *shown] == [mode, plain(amount), plain(spent), plain(left)]


@step("<name:NAME> has <changes:COUNT> budget changes left today")
async def _(stage: Stage, name: str, changes: str) -> None:
    budget = (await stage.platform.ad_account(stage.name(name)))["budget"]
    assert (budget["changes_remaining"], budget["changes_today"]) == (int(changes), 10 - int(changes))


@step("the spend of <name:NAME> is gross <gross:AMOUNT>, billed <billed:AMOUNT>, overdelivered <over:AMOUNT>")
async def _(stage: Stage, name: str, gross: str, billed: str, over: str) -> None:
    account = stage.holder(name)
    answer = await (stage.platform.ad_account(account) if account else stage.platform.business_center(stage.center))
    shown = {field: plain(amount) for field, amount in answer["spend"].items()}
    assert shown == {"gross": plain(gross), "billed": plain(billed), "overdelivered": plain(over)}


@step("the cash spend of <name:NAME> is followed")
async def _(stage: Stage, name: str) -> None:
    await stage.platform.follow_cash_spend(stage.name(name), "USD")


@step("the cash spend of <name:NAME> is <amount:AMOUNT>")
async def _(stage: Stage, name: str, amount: str) -> None:
    assert plain(await stage.platform.cash_spend(stage.name(name))) == plain(amount)


# What has to be true: delivery.


@step("[campaign <campaign:NAME> of ]<name:NAME> delivers")
async def _(stage: Stage, campaign: str | None, name: str) -> None:
    await _check_delivery(stage, campaign, name, delivering=True, causes=[])


@step("[campaign <campaign:NAME> of ]<name:NAME> is paused by <causes:CAUSES>")
async def _(stage: Stage, campaign: str | None, name: str, causes: str) -> None:
    await _check_delivery(stage, campaign, name, delivering=False, causes=causes.split(", "))


@step("campaign <campaign:NAME> of <name:NAME> stands still with its account")
async def _(stage: Stage, campaign: str, name: str) -> None:
    await _check_delivery(stage, campaign, name, delivering=False, causes=[])


async def _check_delivery(
    stage: Stage, campaign: str | None, name: str, *, delivering: bool, causes: list[str]
) -> None:
    account = stage.name(name)
    answer = await (stage.platform.campaign(account, campaign) if campaign else stage.platform.ad_account(account))
    assert (answer["delivery"]["delivering"], answer["delivery"]["causes"]) == (delivering, causes)


@step("<name:NAME> takes [<no:WORD> ]part in automatic allocation")
async def _(stage: Stage, name: str, no: str | None) -> None:
    assert (await stage.platform.ad_account(stage.name(name)))["automatic_allocation"] is (no is None)


@step("left out of automatic allocation of <name:NAME> are")
async def _(stage: Stage, name: str, table: Table) -> None:
    answer = (await stage.platform.business_center(stage.center))["automatic_allocation"]
    left_out = [[each["ad_account_id"], each["reason"]] for each in answer["left_out"]]
    assert sorted(left_out) == sorted([stage.name(account), reason] for account, reason in table)


@step("the signals of [campaign <campaign:NAME> of ]<name:NAME> since then are")
async def _(stage: Stage, campaign: str | None, name: str, table: Table) -> None:
    assert await stage.signals(name, campaign) == table


@step("nothing is signalled for [campaign <campaign:NAME> of ]<name:NAME>")
async def _(stage: Stage, campaign: str | None, name: str) -> None:
    assert await stage.signals(name, campaign) == []
