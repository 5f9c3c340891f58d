"""Campaigns that rest: they leave memory if no input has named them for long, and come back when one names them.

No decision depends on it: the process that writes the shard chooses which campaigns leave, and when. It keeps a row of
each, with the position up to which the row holds (`docs/decisions/what-leaves-memory.md`). The next batch is decided
before that row can be read, so a campaign that has just left is kept for one more batch.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

from shared.rules.budgets import DAILY, OPEN_DAYS
from shared.rules.kept_budgets import dump_budget, is_typed, load_budget
from shared.rules.pauses import is_large
from shared.rules.policy import Policy
from shared.rules.state import AdAccount, Campaign

# By ad account and campaign id: the kept rows of the campaigns that a batch names; None for one that never existed.
Recorded = Mapping[str, Mapping[str, dict[str, Any] | None]]

# At most this many leave after a batch, and this many are looked at to find them: more if more come than leave.
MOST_LEAVING: Final = 10_000
LOOKED_AT: Final = 2_000
LOOKED_AT_IN_HASTE: Final = 30_000


class CampaignsInMemory:
    """The campaigns of a shard that are in memory: `most` of them, and more only if the others cannot rest.

    `routes` lead from the ids of a spend to its campaign, for campaigns named in the present generation. A generation
    ends when a quarter of `most` were named in it. A campaign that was named neither in it nor in the one before may
    leave.
    """

    def __init__(self) -> None:
        self.most: int | None = None
        self.count = 0
        self.some_rest = False
        self.routes: dict[str, Campaign] = {}
        self.recorded: Recorded = {}
        self._generation = 0
        self._looked_through = -1
        self._named = 0
        self._left: dict[tuple[str, str], Campaign] = {}
        self._all: Iterator[Campaign] | None = None

    def note(self, route: str, campaign: Campaign) -> None:
        """Note that a campaign was named for the first time in this generation."""
        self.routes[route] = campaign
        campaign.seen = self._generation
        self._named += 1

    def find(self, account: AdAccount, id: str) -> Campaign | None:
        """Return the account's campaign of this id and keep it in memory, or return None if it never existed.

        Raise LookupError if it may rest and was not looked up.
        """
        campaign = account.campaigns.get(id)
        if campaign is None and account.campaigns_ever > len(account.campaigns):
            campaign = self._left.pop((account.id, id), None) or self._awoken(account, id)
            if campaign is not None:
                self.add(campaign)
        return campaign

    def find_all(self, account: AdAccount) -> None:
        """Bring back all campaigns of an account. Raise LookupError if one of them was not looked up."""
        if account.campaigns_ever == len(account.campaigns):
            return
        for id in [*(id for holder, id in self._left if holder == account.id), *self.recorded.get(account.id, ())]:
            self.find(account, id)
        if account.campaigns_ever != len(account.campaigns):
            raise LookupError(f"campaigns of the ad account {account.id} that rest were not looked up")

    def add(self, campaign: Campaign) -> None:
        """Hold a campaign in memory."""
        campaign.account.campaigns[campaign.id] = campaign
        campaign.seen = self._generation
        self._named += 1
        self.count += 1

    def take_out(self, campaign: Campaign) -> None:
        """Take a campaign out of memory. Another process has let it rest, so it can be looked up."""
        account = campaign.account
        del account.campaigns[campaign.id]
        self.routes.pop(route(account.business_center.id, account.id, campaign.id), None)
        self.count -= 1
        self.some_rest = True

    def let_rest(self, accounts: Mapping[str, AdAccount], policy: Policy) -> list[Campaign]:
        """Take campaigns out of memory after a batch if there are too many, and return them to be kept as rows."""
        self._left = {}
        if self.most is None or self.count <= self.most // 4 * 3:
            return []
        if self._named >= self.most // 4:
            self._generation += 1
            self._named = 0
            self.routes.clear()
        for campaign in self._idle(accounts, self.count - self.most, policy):
            self._left[campaign.account.id, campaign.id] = campaign
            del campaign.account.campaigns[campaign.id]
        self.count -= len(self._left)
        self.some_rest = self.some_rest or bool(self._left)
        return list(self._left.values())

    def _idle(self, accounts: Mapping[str, AdAccount], too_many: int, policy: Policy) -> Iterator[Campaign]:
        """Yield campaigns that may leave. Each call continues where the last one ended, once a generation."""
        if too_many <= 0 or self._looked_through == self._generation:
            return
        self._all = self._all or _all_of(accounts)
        left = min(too_many, MOST_LEAVING)
        for campaign in islice(self._all, LOOKED_AT if too_many < LOOKED_AT else LOOKED_AT_IN_HASTE):
            if campaign.seen < self._generation - 1 and may_rest(campaign, policy):
                yield campaign
                left -= 1
                if not left:
                    return
        if next(self._all, None) is None:
            self._looked_through = self._generation
            self._all = None

    def _awoken(self, account: AdAccount, id: str) -> Campaign | None:
        looked_up = self.recorded.get(account.id, {})
        if id not in looked_up:
            raise LookupError(f"the campaign {id} of the ad account {account.id} may rest and was not looked up")
        kept = looked_up[id]
        return None if kept is None else load_campaign(account, id, kept)


def route(center_id: str, account_id: str, campaign_id: str) -> str:
    """Return the key by which a campaign is found in one step. It is unique because no id holds a space."""
    return f"{center_id} {account_id} {campaign_id}"


def may_rest(campaign: Campaign, policy: Policy) -> bool:
    """Return whether only a record that names the campaign can change it, or what stops it.

    Time changes daily budgets that have spend or are paused. The account's money changes what stops its campaigns if
    some of it is, or was, tied to campaigns, unless the account is large or draws on its Business Center.
    """
    account, budget = campaign.account, campaign.budget
    if campaign in account.watched or campaign in account.stopped_campaigns:
        return False
    if budget.mode == DAILY and max(budget.day, budget.days.newest) >= account.zone.today - OPEN_DAYS:
        return False
    if campaign.id in account.vouchers.tied_to:
        return False
    return account.participates or not account.has_tied or is_large(account, policy)


def dump_campaign(campaign: Campaign) -> dict[str, Any]:
    """Return what is kept of a campaign that rests: its place, the causes that stop it, its budget."""
    return {"order": campaign.order, "causes": campaign.causes, "budget": dump_budget(campaign.budget)}


def is_as_dumped(kept: Any) -> bool:
    """Return whether `dump_campaign` could have written this JSON. Whether its values are right is not checked."""
    try:
        place, causes, budget = kept["order"], kept["causes"], kept["budget"]
        again = dump_budget(load_budget(budget))
        is_whole = len(kept) == 3 and type(place) is type(causes) is int and is_typed(budget)
        return is_whole and _plain(again) == _plain(budget)
    except Exception:
        return False


def _plain(value: Any) -> Any:
    """Return JSON in a comparable form, with lists for tuples. Raise TypeError for a type that no dump has."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if value is None or type(value) in (int, str):
        return value
    raise TypeError(type(value).__name__)


def load_campaign(account: AdAccount, id: str, kept: dict[str, Any]) -> Campaign:
    """Return the campaign that `dump_campaign` wrote."""
    campaign = Campaign(account, id, kept["order"], load_budget(kept["budget"]))
    campaign.causes = kept["causes"]
    return campaign


def _all_of(accounts: Mapping[str, AdAccount]) -> Iterator[Campaign]:
    for account in list(accounts.values()):
        yield from list(account.campaigns.values())
