"""Audits one shard: decides its ledger again, folds it at the same time, and looks for each command's answer."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import asyncpg

from services.auditor.anchors import Anchors
from services.auditor.baseline import FOLLOWERS, Baseline, Head
from services.auditor.checks.counts import check_count
from services.auditor.difference import DifferenceError, expect
from services.auditor.replayed import sums
from services.auditor.replayed.closings import ClosingFold, closings_of
from services.auditor.replayed.fold import Fold
from services.auditor.replayed.recorded_outcomes import RecordedOutcome, RecordedOutcomes
from services.auditor.replayed.resting import RestingRows
from services.auditor.tables import TABLES, compare
from shared.contracts.commands import is_hash, sent_command
from shared.ledger.decoding import StoredEntry
from shared.ledger.lookup import grants_of, read_grants
from shared.ledger.merkle import CompactRange
from shared.ledger.replay import Redecider, ReplayDiffersError, StoredBatch, newer_rules
from shared.rules.command_types import Command
from shared.rules.policy import Policy
from shared.rules.resting import Recorded
from shared.rules.shard import Shard
from shared.rules.versions import CHANGES
from shared.rules.ways import TOPIC

_NEVER = 2**63


class ShardAudit(Redecider):
    """Decides a shard again from its first position on, and compares it with everything that was derived from it."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        head: Head,
        baseline: Baseline,
        outcomes: RecordedOutcomes,
        anchors: Anchors,
    ) -> None:
        # The deduplication window is a setting, not in the ledger, and may have changed since: no limit applies here.
        super().__init__(connection, Shard(deduplication_days=None), head.shard, CompactRange())
        elsewhere = {account for account, (shard, _) in baseline.accounts.items() if shard != head.shard}
        self.rules.accounts_elsewhere = elsewhere
        self.fold = Fold(head.shard)
        self.batches = self.rows = self.refused = self.hashed = 0
        self._head = head
        self._baseline = baseline
        self._outcomes = outcomes
        self._anchors = anchors
        cuts = {name: head.checkpoints.get(name, (0, None))[0] for name in FOLLOWERS}
        closings = closings_of(head.shard, baseline.rows["balance.closings"], cuts["balance"])
        self._closing_fold = ClosingFold(head.shard, closings)
        self._cuts = sorted(
            [*((position, name) for name, position in cuts.items()), *((position, "closings") for position in closings)]
        )
        self._next_refusal = _NEVER
        # Campaigns that refusals name stay in memory, even if the writer let them rest.
        kept = campaigns_of(outcomes.refusals)
        self.resting = RestingRows(connection, head.shard, head.position, kept)
        self._never_rest: dict[str, dict[str, None]] = {}
        for account, campaign in kept:
            self._never_rest.setdefault(account, {})[campaign] = None

    async def check(self, progress: Callable[[int], None]) -> None:
        """Check everything about the shard. Raise DifferenceError at the first difference.

        Call `progress` with each position reached.
        """
        await self._look_up_what_refusals_name()
        refusals = self._outcomes.refusals
        self._await_refusal()
        self._compare_at(0, None)
        try:
            await self.read_policies({each.policy_version for each in refusals if each.policy_version is not None})
            await self.run(0, self._head.position, progress, others={each.zones_release for each in refusals})
        except ReplayDiffersError as error:
            raise DifferenceError(str(error)) from error
        self._decide_refusals_after(self._head.position)
        self._outcomes.finish()
        self._check_lease()
        self._check_accounts()
        self._anchors.finish(self.shard)
        sums.check_pockets(self.rules, self.fold)
        sums.check_identity(self.rules, self.fold)
        await sums.check_reversals(self.connection, self.shard, self.fold)

    async def _look_up_what_refusals_name(self) -> None:
        commands: list[Command] = []
        # A command that cannot be read was forged. Deciding again reaches its position later and reports it there.
        for content in (refusal.content for refusal in self._outcomes.refusals):
            with suppress(LookupError, TypeError, ValueError, AttributeError):
                commands += [] if is_hash(content) else [sent_command(content, TOPIC).command]
        with suppress(LookupError, TypeError, ValueError, AttributeError):
            self.grants = await read_grants(self.connection, self.shard, grants_of(commands, ()))

    # ---- While deciding ---------------------------------------------------------------------------------------

    async def rest(self, batch: StoredBatch) -> None:
        """Let the campaigns rest that the writer let rest after this batch. Raise DifferenceError if one differs."""
        await self.resting.check(self.rules, batch.last)

    async def resting_before(self, batch: StoredBatch, inputs: list[Any]) -> Recorded:
        """Return the campaigns that the batch names and those that refusals name, which never leave memory here."""
        found = await super().resting_before(batch, inputs)
        return {
            account: {**self._never_rest.get(account, {}), **found.get(account, {})}
            for account in (found.keys() | self._never_rest.keys())
        }

    def before(self, batch: StoredBatch) -> None:
        """Decide the refusals of batches without entries, which lie before this batch."""
        while self._outcomes.refusals:
            refusal = self._outcomes.refusals[0]
            if refusal.position != batch.first - 1 or not self._is_earlier(refusal, batch):
                break
            self._decide_alone(refusal)

    def _is_earlier(self, refusal: RecordedOutcome, batch: StoredBatch) -> bool:
        """Return whether the command was refused before this batch.

        A refusal with the batch's time, rules, zones and policy counts as one of the batch itself.
        """
        if refusal.recorded_at != batch.recorded_at or refusal.recorded_at == self.rules.now:
            return refusal.recorded_at <= batch.recorded_at
        under = (batch.rules_version, batch.zones_release)
        policies = (refusal.policy_version or batch.policy_version, batch.policy_version)
        return (refusal.rules_version, refusal.zones_release) != under or policies[0] != policies[1]

    def between(self) -> None:
        """Decide the refusals of the batch, each after the inputs that came before it."""
        position = self.rules.position + len(self.rules.batch.entries)
        if position < self._next_refusal:
            return
        while self._outcomes.refusals:
            refusal = self._outcomes.refusals[0]
            if refusal.position != position or refusal.recorded_at != self.rules.now:
                break
            if not self._is_decided_as_now(refusal):
                break
            self._refuse(refusal)
        if position > self._next_refusal:
            raise DifferenceError(
                f"{self._where(self._next_refusal)}: a command was refused there at a time when nothing was decided"
            )

    def after(self, batch: StoredBatch, stored: list[StoredEntry]) -> None:
        """Fold the entries just decided, and compare the read models at each position where a follower stood."""
        self.batches += 1
        begin = batch.first
        for position in sorted({cut for cut, _ in self._cuts if batch.first <= cut <= batch.last}):
            self._fold(stored[begin - batch.first : position - batch.first + 1])
            begin = position + 1
            self._compare_at(position, batch.recorded_at)
        self._fold(stored[begin - batch.first :])
        for item in stored:
            _, _, _, source, part, day, _ = item.entry
            if day is None and part == 0 and source is not None:
                self._outcomes.match(item, _last_of(stored, item.position - batch.first))
        self._anchors.check(self.shard, self.tree)

    def _fold(self, stored: list[StoredEntry]) -> None:
        """Fold the entries between two positions at which read models are compared."""
        self.fold.add(stored)
        if stored and stored[-1].position <= self._closing_fold.last:
            self._closing_fold.add(stored)

    def _compare_at(self, position: int, recorded_at: int | None) -> None:
        for name in [name for cut, name in self._cuts if cut == position]:
            as_of = f"as of shard {self.shard}, position {position}"
            if name == "closings":
                rows = self._closing_fold.close(position, self.fold)
            else:
                told = self._head.checkpoints.get(name, (0, None))[1]
                expect(told == recorded_at, f"the checkpoint of {name}, {as_of}, has the time of another position")
                rows = self.fold.rows(name)
            for table in TABLES:
                if table.follower == name:
                    self.rows += compare(table, rows.get(table.name, {}), self._baseline.rows[table.name], as_of)

    # ---- Refusals ---------------------------------------------------------------------------------------------

    def _decide_refusals_after(self, position: int) -> None:
        while self._outcomes.refusals and self._outcomes.refusals[0].position == position:
            self._decide_alone(self._outcomes.refusals[0])

    def _decide_alone(self, refusal: RecordedOutcome) -> None:
        """Decide a refusal of a batch without entries. No timer was due at its ledger time.

        If the previous batch left due timers to the next one, this is that next one.
        """
        if refusal.recorded_at > self.rules.now or not self._is_decided_as_now(refusal):
            where = self._where(refusal.position)
            expect(refusal.rules_version in CHANGES, f"{where}: {newer_rules(refusal.rules_version)}")
            policy = replace(self._policy_that_refused(refusal, where), rules=refusal.rules_version)
            self.rules.begin(
                refusal.recorded_at,
                policy,
                grants=self.grants,
                zones=self.zones_of(refusal.zones_release),
                resting=self._never_rest,
            )
            if self.rules.entries:
                line, *_ = self.rules.entries[0]
                raise DifferenceError(
                    f"{self._where(self.tree.size + 1)}: at the time of outcome {refusal.sequence}"
                    f" a {line.kind} was due, but the ledger does not hold it"
                )
        self._refuse(refusal)

    def _policy_that_refused(self, refusal: RecordedOutcome, where: str) -> Policy:
        """Return the policy that the refusal names, or the one in force if it names none. Raise DifferenceError."""
        if refusal.policy_version is None:
            return self.rules.policy
        policy = self.policies.get(refusal.policy_version)
        if policy is None:
            raise DifferenceError(f"{where}: no policy {refusal.policy_version!r} is recorded")
        return policy

    def _is_decided_as_now(self, refusal: RecordedOutcome) -> bool:
        """Return whether the present batch takes commands, under the policy, rules and zones that refused this one."""
        policy = self.rules.policy
        in_force = (policy.version, policy.rules, self.rules.zones.release)
        named = (refusal.policy_version or policy.version, refusal.rules_version, refusal.zones_release)
        return not self.rules.has_due() and in_force == named

    def _refuse(self, refusal: RecordedOutcome) -> None:
        where = f"{self._where(refusal.position)}, outcome {refusal.sequence}"
        expect(refusal.recorded_at == self.rules.now, f"{where}: the refusal's time lies before the last decision")
        if is_hash(refusal.content):
            self.hashed += 1
        else:
            self._refuse_again(refusal, where)
        self._outcomes.refusals.popleft()
        self._await_refusal()

    def _refuse_again(self, refusal: RecordedOutcome, where: str) -> None:
        told = f"the command {refusal.content['command_id']} was refused as {refusal.answer.code}, but decided again"
        try:
            sent = sent_command(refusal.content, refusal.via or TOPIC)
            refused = self.rules.command(sent.command, refusal.command_id, sent.content, sent.via)
        except Exception as error:
            raise DifferenceError(f"{where}: {told} it fails: {type(error).__name__}: {error}") from error
        if refused is None:
            raise DifferenceError(f"{where}: {told} it is accepted")
        expect(refused.code == refusal.answer.code, f"{where}: {told} as {refused.code}: {refused.message}")
        self.refused += 1

    def _await_refusal(self) -> None:
        refusals = self._outcomes.refusals
        self._next_refusal = refusals[0].position if refusals else _NEVER

    # ---- After the last batch ---------------------------------------------------------------------------------

    def _check_lease(self) -> None:
        check_frontier(self._head, self.tree)
        check_count(self._head, self.tree.size)
        behind = self._head.ledger_time >= self.rules.now or not self.batches
        expect(behind, f"shard {self.shard}: the lease's ledger time lies before the last batch's")

    def _check_accounts(self) -> None:
        registered = {
            account: center for account, (shard, center) in self._baseline.accounts.items() if shard == self.shard
        }
        opened = self.fold.center_of
        for account in sorted(registered.keys() | opened.keys()):
            expect(
                registered.get(account) == opened.get(account),
                f"shard {self.shard}: ledger.ad_accounts holds {account} of {registered.get(account)},"
                f" but the entries open it in {opened.get(account)}",
            )


def campaigns_of(refusals: Iterable[RecordedOutcome]) -> set[tuple[str, str]]:
    """Return the campaigns, by ad account and id, that deciding these refusals again needs.

    A refusal whose content is a hash or was forged may name none.
    """
    campaigns = set()
    for refusal in refusals:
        if refusal.type == "set_campaign_budget" and refusal.answer.code == "limit_reached":
            account, campaign = (refusal.content.get(name) for name in ("ad_account_id", "campaign_id"))
            if isinstance(account, str) and isinstance(campaign, str):
                campaigns.add((account, campaign))
    return campaigns


def check_frontier(head: Head, tree: CompactRange) -> None:
    """Raise DifferenceError unless the lease's position and frontier are those of the entries."""
    expect(
        tree.size == head.position and tree.frontier() == head.frontier,
        f"shard {head.shard}: the lease's frontier at {head.position} is not that of the entries,"
        f" whose root is {tree.root().hex()}",
    )


def _last_of(stored: list[StoredEntry], start: int) -> int:
    """Return the position of the last entry of the command whose first entry has this index."""
    source = stored[start].source
    end = start
    while end + 1 < len(stored) and stored[end + 1].source == source:
        end += 1
    return stored[end].position
