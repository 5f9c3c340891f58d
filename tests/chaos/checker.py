"""The outside checker: compares what was published with the ledger, the read models and the signals.

It shares no code with the product and decides nothing; `drawdown audit replay` checks which pocket pays. It counts.
Every finding is lost, doubled, reordered or wrong, with a sentence that says what and where.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import groupby, pairwise

from tests.chaos.journal import Commanded, Journal, Record
from tests.chaos.observed import Entry, Observed, causes_of
from tests.model.forms import micros, money

PAID = {"voucher_debit", "ad_credit_debit", "cash_debit", "credit_debit", "business_center_draw"}
POCKETS = {
    "business_center": ("cash", "voucher", "ad_credit"),
    "ad_account": ("cash", "voucher", "ad_credit", "credit"),
}


@dataclass
class Findings:
    """The defects that were found, a sentence each."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    reordered: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.lost or self.doubled or self.reordered or self.wrong)

    def __str__(self) -> str:
        return ", ".join(f"{name} {len(found)}" for name, found in vars(self).items())

    def examples(self, most: int = 5) -> str:
        """Return the first findings of each kind, a line each."""
        return "\n".join(f"{name}: {each}" for name, found in vars(self).items() for each in found[:most])


def judge(journal: Journal, seen: Observed) -> Findings:
    """Compare what was sent with what is observed."""
    findings = Findings()
    by_source: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in seen.entries:
        if entry.source is not None:
            by_source[entry.source].append(entry)
    _positions(seen, findings)
    _batches(seen, findings)
    _events(journal, by_source, findings)
    _order(journal, by_source, findings)
    _strangers(journal, by_source, findings)
    _commands(journal, by_source, seen, findings)
    _quarantine(journal, seen, findings)
    _signals(seen, findings)
    _spend(journal, seen, findings)
    _balances(seen, findings)
    _deliveries(seen, findings)
    return findings


def _positions(seen: Observed, findings: Findings) -> None:
    """Check that positions are 1, 2, 3 … in each shard, and that ledger time never goes back."""
    for shard, group in groupby(seen.entries, key=lambda entry: entry.shard):
        before, time = 0, -(2**62)
        for entry in group:
            if entry.position > before + 1:
                findings.lost.append(f"shard {shard}: position {entry.position} follows {before}")
            elif entry.position <= before:
                findings.doubled.append(f"shard {shard}: position {entry.position} is there again")
            if entry.recorded_at < time:
                findings.reordered.append(f"shard {shard}: time goes back at position {entry.position}")
            before, time = entry.position, entry.recorded_at


def _batches(seen: Observed, findings: Findings) -> None:
    """Check that batches have no gaps, that epochs never fall, and that the roots are those of the entries."""
    leaves: defaultdict[int, list[bytes]] = defaultdict(list)
    for entry in seen.entries:
        leaves[entry.shard].append(entry.leaf)
    last: Counter[int] = Counter()
    epoch: Counter[int] = Counter()
    trees: defaultdict[int, list[tuple[int, bytes]]] = defaultdict(list)
    for batch in seen.batches:
        where = f"shard {batch.shard}, batch {batch.first} … {batch.last}"
        if batch.first != last[batch.shard] + 1:
            findings.wrong.append(f"{where} follows position {last[batch.shard]}")
        if batch.epoch < epoch[batch.shard]:
            findings.reordered.append(f"{where} is of epoch {batch.epoch}, one before of {epoch[batch.shard]}")
        _grow(trees[batch.shard], leaves[batch.shard][last[batch.shard] : batch.last])
        if _root(trees[batch.shard]) != batch.root:
            findings.wrong.append(f"{where}: its root is not that of the entries")
        last[batch.shard], epoch[batch.shard] = batch.last, batch.epoch
    for shard, hashes in leaves.items():
        if last[shard] != len(hashes):
            findings.wrong.append(f"shard {shard}: batches end at {last[shard]}, entries at {len(hashes)}")


def _grow(peaks: list[tuple[int, bytes]], leaves: Iterable[bytes]) -> None:
    """Add a leaf to perfect subtrees (height, hash), highest first; merge those of one height (RFC 6962, 2.1)."""
    for leaf in leaves:
        peaks.append((0, leaf))
        while len(peaks) > 1 and peaks[-1][0] == peaks[-2][0]:
            (height, right), (_, left) = peaks.pop(), peaks.pop()
            peaks.append((height + 1, sha256(b"\x01" + left + right).digest()))


def _root(peaks: list[tuple[int, bytes]]) -> bytes:
    root = peaks[-1][1] if peaks else sha256().digest()
    for _, left in reversed(peaks[:-1]):
        root = sha256(b"\x01" + left + root).digest()
    return root


def _events(journal: Journal, by_source: dict[str, list[Entry]], findings: Findings) -> None:
    """Check that every valid event is charged exactly once, to the micro."""
    for event_id, published in journal.events.items():
        entries = by_source.get(event_id)
        if not entries:
            findings.lost.append(f"{published.event['type']} {event_id} is not in the ledger")
            continue
        _are_consecutive(event_id, entries, findings)
        charged = sum(_worth(entry) for entry in entries)
        if charged == published.amount:
            continue
        sentence = f"{event_id} of {money(published.amount)} is charged {money(charged)}"
        (findings.doubled if charged >= 2 * published.amount else findings.wrong).append(sentence)


def _worth(entry: Entry) -> int:
    """Return the part of its event's amount that an entry accounts for, in micros."""
    if entry.amount is None:
        return 0
    if entry.kind in PAID or (entry.kind == "reversal" and entry.pocket is None):
        return -entry.amount
    return entry.amount if entry.kind in ("overdelivery", "reversal", "forfeit") else 0


def _are_consecutive(source: str, entries: list[Entry], findings: Findings) -> None:
    """Check that all entries of an event are consecutive, in one shard, and numbered from 0."""
    if sum(entry.part == 0 for entry in entries) > 1:
        findings.doubled.append(f"{source} is in the ledger {sum(entry.part == 0 for entry in entries)} times")
    elif [entry.part for entry in entries] != list(range(len(entries))):
        findings.wrong.append(f"the parts of {source} are {[entry.part for entry in entries]}")
    elif any(b.position != a.position + 1 or b.shard != a.shard for a, b in pairwise(entries)):
        findings.wrong.append(f"the entries of {source} do not stand together")


def _order(journal: Journal, by_source: dict[str, list[Entry]], findings: Findings) -> None:
    """Check that the events of a home partition are charged in the order in which they were published."""
    published: defaultdict[int, list[tuple[tuple[int, int], int, str]]] = defaultdict(list)
    for event_id, each in journal.events.items():
        if each.is_ordered and each.places and event_id in by_source:
            published[each.shard].append((min(each.places), by_source[event_id][0].position, event_id))
    for shard, events in published.items():
        latest = 0
        for (_, offset), position, event_id in sorted(events):
            if position < latest:
                findings.reordered.append(f"shard {shard}: {event_id} at offset {offset} is charged at {position}")
            latest = max(latest, position)


def _strangers(journal: Journal, by_source: dict[str, list[Entry]], findings: Findings) -> None:
    """Check that the ledger contains nothing that was not sent."""
    for source in by_source.keys() - journal.events.keys() - journal.commands.keys():
        findings.wrong.append(f"{source} is in the ledger, and nobody sent it")


def _commands(journal: Journal, by_source: dict[str, list[Entry]], seen: Observed, findings: Findings) -> None:
    """Check that every command is decided once, as it was answered and published, and takes effect once."""
    decided: defaultdict[str, list[Record]] = defaultdict(list)
    for row in seen.outcomes:
        if row["first"]:
            decided[str(row["command_id"])].append(row)
    told: defaultdict[str, list[Record]] = defaultdict(list)
    for message in seen.told_outcomes:
        told[message["command_id"]].append(message)
    for command_id, sent in journal.commands.items():
        rows = decided.get(command_id, [])
        if len(rows) != 1:
            (findings.doubled if rows else findings.lost).append(f"command {command_id} has {len(rows)} decisions")
            continue
        if not told.get(command_id):
            findings.lost.append(f"the outcome of {command_id} was never published")
        expected = (rows[0]["status"], rows[0]["code"], rows[0]["shard"], rows[0]["position"])
        for answer in (*sent.answers, *told.get(command_id, [])):
            given = (answer["status"], answer["code"], answer["shard"], answer["position"])
            if given != expected:
                findings.wrong.append(f"command {command_id} is {expected} and was answered {given}")
        _effect(command_id, sent, rows[0], by_source.get(command_id, []), findings)


def _effect(command_id: str, sent: Commanded, row: Record, entries: list[Entry], findings: Findings) -> None:
    if row["status"] == "rejected":
        if entries:
            findings.wrong.append(f"command {command_id} was rejected and has {len(entries)} entries")
        return
    if not entries:
        findings.lost.append(f"command {command_id} was accepted and has no entry")
        return
    _are_consecutive(command_id, entries, findings)
    if sent.command["type"] == "deposit_cash":
        deposited = sum(entry.amount or 0 for entry in entries if entry.kind == "deposit")
        if deposited != micros(sent.command["amount"]):
            findings.wrong.append(f"deposit {command_id} of {sent.command['amount']} brought {money(deposited)}")


def _quarantine(journal: Journal, seen: Observed, findings: Findings) -> None:
    """Check that invalid records are quarantined with their bytes, as often as they were published."""
    found = Counter(seen.quarantine)
    for key, times in journal.bad.items():
        reason, raw = key
        most = times + journal.doubtful.get(key, 0)
        if found[key] < times:
            findings.lost.append(f"set aside {found[key]} of {times} times as {reason}: {raw[:80]!r}")
        elif found[key] > most:
            findings.doubled.append(f"set aside {found[key]} times, published {most}: {raw[:80]!r}")
    for reason, raw in found.keys() - journal.bad.keys() - journal.doubtful.keys():
        findings.wrong.append(f"quarantined as {reason}, and ought not to be: {raw[:80]!r}")


def _signals(seen: Observed, findings: Findings) -> None:
    """Check that each pause and resume is published once, repetitions aside, and in the ledger's order per key."""
    expected: defaultdict[str, dict[int, Entry]] = defaultdict(dict)
    for entry in seen.entries:
        if entry.kind in ("pause", "resume"):
            expected[_key(entry)][entry.position] = entry
    told: defaultdict[str, dict[int, Record]] = defaultdict(dict)
    latest: Counter[str] = Counter()
    for signal in seen.signals:
        key, position = signal.key, signal.message["position"]
        if position < latest[key] and position not in told[key]:
            findings.reordered.append(f"{key}: the signal of position {position} comes after that of {latest[key]}")
        told[key].setdefault(position, signal.message)
        latest[key] = max(latest[key], position)
    for key in expected.keys() | told.keys():
        _compare_signals(key, expected[key], told[key], findings)


def _compare_signals(key: str, expected: dict[int, Entry], told: dict[int, Record], findings: Findings) -> None:
    for position in expected.keys() - told.keys():
        findings.lost.append(f"{key}: no signal of position {position}")
    for position in told.keys() - expected.keys():
        findings.wrong.append(f"{key}: a signal of position {position}, where the ledger has none")
    for position in expected.keys() & told.keys():
        causes = causes_of(expected[position])
        if told[position]["causes"] != causes or told[position]["delivering"] != (not causes):
            findings.wrong.append(f"{key}: the signal of position {position} does not say {causes}")


def _key(entry: Entry) -> str:
    return f"campaign/{entry.account}/{entry.campaign}" if entry.campaign else f"ad_account/{entry.account}"


def _spend(journal: Journal, seen: Observed, findings: Findings) -> None:
    """Check that gross spend is what was published, and that billed and overdelivered agree with the ledger."""
    gross: Counter[tuple[str, ...]] = Counter()
    for published in journal.events.values():
        event = published.event
        amount = published.amount if event["type"] == "spend" else -published.amount
        for key in _levels(event["business_center_id"], event["ad_account_id"], event["campaign_id"]):
            gross[key] += amount
    overdelivered: Counter[tuple[str, ...]] = Counter()
    for entry in seen.entries:
        if entry.kind == "overdelivery" or (entry.kind == "reversal" and entry.pocket is None):
            for key in _levels(entry.center, entry.account or "", entry.campaign or ""):
                overdelivered[key] += entry.amount or 0
    shown: dict[tuple[str, ...], Record] = {("center", center): read for center, read in seen.centers.items()}
    shown |= {("account", account): read for account, read in seen.accounts.items()}
    shown |= {("campaign", *names): read for names, read in seen.campaigns.items()}
    for key, read in shown.items():
        expected = {
            "gross": money(gross[key]),
            "billed": money(gross[key] - overdelivered[key]),
            "overdelivered": money(overdelivered[key]),
        }
        if read["spend"] != expected:
            findings.wrong.append(f"{'/'.join(key)}: spend is read as {read['spend']}, not {expected}")


def _levels(center: str, account: str, campaign: str) -> tuple[tuple[str, ...], ...]:
    return ("center", center), ("account", account), ("campaign", account, campaign)


def _balances(seen: Observed, findings: Findings) -> None:
    """Check that a pocket's balance is the sum of its entries."""
    sums: Counter[tuple[str, str, str]] = Counter()
    for entry in seen.entries:
        if entry.holder and entry.pocket and entry.amount is not None:
            holder = entry.center if entry.holder == "business_center" else entry.account
            sums[entry.holder, holder or "", entry.pocket] += entry.amount
    for level, reads in (("business_center", seen.centers), ("ad_account", seen.accounts)):
        for name, read in reads.items():
            shown = {pocket: read["balance"][pocket] for pocket in POCKETS[level]}
            expected = {pocket: money(sums[level, name, pocket]) for pocket in POCKETS[level]}
            if level == "business_center":
                shown["credit_line"] = read["balance"]["credit_line"]["available"]
                expected["credit_line"] = money(sums[level, name, "credit_line"])
            if shown != expected:
                findings.wrong.append(f"{level} {name}: balance is read as {shown}, not {expected}")


def _deliveries(seen: Observed, findings: Findings) -> None:
    """Check that the API's answer about delivery agrees with the last entry and the last signal."""
    last: dict[str, list[str]] = {}
    for entry in seen.entries:
        if entry.kind in ("pause", "resume"):
            last[_key(entry)] = causes_of(entry)
    latest: dict[str, Record] = {}
    for signal in seen.signals:
        latest[signal.key] = signal.message
    reads = {f"ad_account/{name}": read for name, read in seen.accounts.items()}
    reads |= {f"campaign/{account}/{name}": read for (account, name), read in seen.campaigns.items()}
    for key, read in reads.items():
        causes = last.get(key, [])
        if read["delivery"]["causes"] != causes:
            findings.wrong.append(f"{key}: the API says {read['delivery']['causes']}, the ledger {causes}")
        if key in latest and latest[key]["causes"] != causes:
            findings.wrong.append(f"{key}: the last signal says {latest[key]['causes']}, the ledger {causes}")
