"""The objects that leave memory: grants that are used up or expired, and lines of entries not written for days.

No decision depends on it. A grant that is needed again is restored from what the ledger says about it
(`Book.grant`). The next batch is decided before the previous one can be read, so a grant leaves two batches after the
batch that ended it.
"""

from collections.abc import Iterable, Iterator

from shared.rules.state import AdAccount, BusinessCenter, Campaign, Grant, GrantPocket

QUIET_DAYS = 2


class EndedGrants:
    """The grants that are used up or expired, by the batch that ended them."""

    def __init__(self) -> None:
        self.now: dict[Grant, None] = {}
        self._before: list[Grant] = []

    def add(self, center: BusinessCenter, grant: Grant) -> None:
        """Keep a grant in memory until it ends. A grant of which nothing is left has just ended."""
        center.grants[grant.kind, grant.id] = grant
        grant.ended = self.now
        if not grant.filled:
            self.now[grant] = None

    def next_batch(self) -> list[Grant]:
        """Drop and return the grants that the batch before the last one ended, except those that hold money again."""
        gone = [grant for grant in self._before if not grant.filled and grant not in self.now]
        for grant in gone:
            _let_go(grant)
        self._before = list(self.now)
        self.now.clear()
        return gone


def _let_go(grant: Grant) -> None:
    del grant.center.grants[grant.kind, grant.id]
    for holding in grant.holdings:
        if holding.account is not None:
            del holding.account.holdings[grant]


def forget_lines(accounts: Iterable[AdAccount], centers: Iterable[BusinessCenter]) -> Iterator[None]:
    """Drop the lines of quiet campaigns and of all grants, one per step. Lines that are needed again are made again."""
    for center in list(centers):
        yield from _forget_lines_of_grants(center.vouchers)
    for account in list(accounts):
        yield from _forget_lines_of_grants(account.vouchers)
        yield from _forget_lines_of_grants(account.ad_credits)
        for campaign in list(account.campaigns.values()):
            _forget_lines_if_quiet(campaign)
            yield


def _forget_lines_of_grants(pocket: GrantPocket) -> Iterator[None]:
    for holding in [*pocket.untied, *(held for tied in pocket.tied_to.values() for held in tied)]:
        holding.lines = {}
        yield


def _forget_lines_if_quiet(campaign: Campaign) -> None:
    if campaign.lines and campaign.budget.day <= campaign.account.zone.today - QUIET_DAYS:
        campaign.lines = {}
        campaign.line = campaign.payer = None
