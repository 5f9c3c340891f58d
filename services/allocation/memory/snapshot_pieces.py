"""The state of a shard as a stream of small pieces, so that it can be kept and loaded again.

The first piece describes the shard and names the fields of every type. Each further piece is one object: its type and
its fields, in that order. An object belongs to the last object before it of the type that holds it: a campaign to its
ad account, a holding to its grant, accounts and grants to their Business Center. The fields are those of `__slots__`
without those in `_DERIVED`, so that a new field is kept unless it is listed there.

A snapshot is a cache: a process that does not know its format decides the ledger again from the beginning.
"""

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from operator import attrgetter
from sys import intern
from typing import Any, Final, NamedTuple

from shared.rules.batch import Batch
from shared.rules.kept_budgets import FIELDS as BUDGET_FIELDS
from shared.rules.kept_budgets import budget_of, budget_row
from shared.rules.pauses import index_campaigns, pinned
from shared.rules.policy import policy_of
from shared.rules.shard import Shard
from shared.rules.state import CAMPAIGN_BYTES, AdAccount, BusinessCenter, Campaign, Grant, Holding, pocket_of

# Raise it with every change of what is dumped. A snapshot of another format is not loaded.
FORMAT: Final = 6

_DERIVED: Final[dict[type, frozenset[str]]] = {
    BusinessCenter: frozenset(
        {"accounts", "grants", "vouchers", "ad_credits", "open_grants", "tied_ids", "daily_campaigns", "memory"}
    ),
    AdAccount: frozenset(
        {
            "business_center",
            "campaigns",
            "vouchers",
            "ad_credits",
            "holdings",
            "stopped_campaigns",
            "watched",
        }
    ),
    Campaign: frozenset({"account", "line", "lines", "payer", "seen", "serial"}),
    Grant: frozenset({"holdings", "filled", "center", "ended"}),
    Holding: frozenset({"grant", "draw_order", "lines"}),
}


class _Form(NamedTuple):
    """The two functions that write a field as JSON and read it again for a shard."""

    dump: Callable[[Any], Any]
    load: Callable[[Shard, Any], Any]


# ---- Fields -------------------------------------------------------------------------------------------------------


_FORMS: Final[dict[tuple[type, str], _Form]] = {
    (BusinessCenter, "zone"): _Form(lambda zone: zone.name, Shard.zone),
    (BusinessCenter, "currency"): _Form(str, lambda _, currency: intern(currency)),
    (AdAccount, "zone"): _Form(lambda zone: zone.name, Shard.zone),
    (AdAccount, "budget"): _Form(budget_row, lambda _, row: budget_of(row)),
    (Campaign, "budget"): _Form(budget_row, lambda _, row: budget_of(row)),
    (Grant, "campaigns"): _Form(
        lambda ids: None if ids is None else sorted(ids), lambda _, ids: None if ids is None else frozenset(ids)
    ),
    (Holding, "account"): _Form(
        lambda account: None if account is None else account.id,
        lambda shard, account_id: None if account_id is None else shard.accounts[account_id],
    ),
}


# ---- Objects ------------------------------------------------------------------------------------------------------


def fields_of(kind: type) -> tuple[str, ...]:
    """Return the fields of a type that a snapshot keeps."""
    slots: tuple[str, ...] = kind.__slots__  # type: ignore[attr-defined]
    return tuple(name for name in slots if name not in _DERIVED[kind])


class Plan(NamedTuple):
    """How the objects of a type become rows. `forms` has the fields, by index, whose values are not JSON already."""

    names: tuple[str, ...]
    values: Callable[[Any], tuple[Any, ...]]
    forms: tuple[tuple[int, _Form], ...]


def plan_of(kind: type, names: tuple[str, ...]) -> Plan:
    """Return how these fields of a type are dumped and loaded."""
    forms = [(index, _FORMS[kind, name]) for index, name in enumerate(names) if (kind, name) in _FORMS]
    # The second name is there because attrgetter returns no tuple for a single one.
    return Plan(names, attrgetter(*names, "__class__"), tuple(forms))


PLANS: Final = {kind: plan_of(kind, fields_of(kind)) for kind in _DERIVED}


def _row(item: Any) -> list[Any]:
    plan = PLANS[type(item)]
    row = list(plan.values(item)[:-1])
    for index, form in plan.forms:
        row[index] = form.dump(row[index])
    return row


def _read(shard: Shard, kind: type, row: list[Any]) -> list[Any]:
    """Return the values of the fields, in the order of their names."""
    for index, form in PLANS[kind].forms:
        row[index] = form.load(shard, row[index])
    return row


def _fill(item: Any, names: Iterable[str], values: Iterable[Any]) -> None:
    for name, value in zip(names, values, strict=True):
        setattr(item, name, value)


# ---- A shard ------------------------------------------------------------------------------------------------------


def dump(shard: Shard) -> Iterator[Any]:
    """Yield the state after the present batch, piece by piece. Take it between two batches only.

    A piece shares no object with the state, so the shard may go on while the pieces are written.
    """
    shard.keep_to_the_ledger()
    policy, zones = shard.named_by_ledger
    yield [
        {
            "position": shard.batch.last_position(),
            "now": shard.now,
            "reached": shard.reached,
            "policy": policy.content(),
            "rules": policy.rules,
            "zones_release": zones.release,
            "kept_zones": {name: b64encode(data).decode() for name, data in shard.kept_zones.items()},
        },
        _all_fields(),
    ]
    for center in shard.business_centers.values():
        yield from map(_piece, _objects(center))


def load(shard: Shard, pieces: Iterable[Any]) -> None:
    """Fill an empty shard with the pieces of `dump`. Its `tables` must hold the release of time zones in force.

    Raise ValueError if there are no pieces, or if their fields are not those of these rules.
    """
    assert not shard.business_centers, "a snapshot is loaded into an empty shard"
    rest = iter(pieces)
    first: Any = next(rest, ({}, {}))
    of_shard, fields = first
    if fields != _all_fields():
        raise ValueError("the snapshot has the fields of other rules")
    shard.policy = replace(policy_of(of_shard["policy"]), rules=of_shard["rules"])
    shard.zones = shard.tables[of_shard["zones_release"]]
    shard.named_by_ledger = (shard.policy, shard.zones)
    shard.kept_zones = {name: b64decode(data) for name, data in of_shard["kept_zones"].items()}
    shard.now, shard.reached = of_shard["now"], of_shard["reached"]
    shard.position = of_shard["position"]
    shard.batch = Batch(shard.position)
    loader = _Loader(shard)
    for kind, row in rest:
        loader.load(kind, row)
    for center in shard.business_centers.values():
        _derive(shard, center)


def _derive(shard: Shard, center: BusinessCenter) -> None:
    """Rebuild the fields that follow from all objects of a Business Center."""
    shard.bounded += center.bounds_spends()
    for grant in list(center.grants.values()):
        shard.keep_grant(center, grant)
    for account in center.accounts.values():
        shard.campaigns.some_rest = shard.campaigns.some_rest or account.campaigns_ever > len(account.campaigns)
        index_campaigns(account, shard.policy)


def _all_fields() -> dict[str, list[str]]:
    return {**{kind.__name__: list(plan.names) for kind, plan in PLANS.items()}, "Budget": list(BUDGET_FIELDS)}


def _piece(item: object) -> Any:
    return [type(item).__name__, _row(item)]


def _objects(center: BusinessCenter) -> Iterator[object]:
    """Yield a Business Center and all its objects, each after the object that it belongs to."""
    yield center
    for account in center.accounts.values():
        yield account
        yield from account.campaigns.values()
    for grant in center.grants.values():
        yield grant
        yield from grant.holdings


class _Loader:
    """Makes the objects of a snapshot, in the order in which they were dumped."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._center: BusinessCenter
        self._account: AdAccount
        self._grant: Grant

    def load(self, kind: str, row: list[Any]) -> None:
        """Make the object of one piece, and add it to the object that it belongs to."""
        if kind == "Campaign":
            self.put_campaign(*row)
            return
        type, put = _PUT[kind]
        put(self, dict(zip(PLANS[type].names, _read(self._shard, type, row), strict=True)))

    def put_center(self, fields: dict[str, Any]) -> None:
        """Add a Business Center to the shard."""
        self._center = center = BusinessCenter(
            fields["id"], fields["currency"], fields["zone"], fields["finance_roles"], self._shard.memory
        )
        _fill(center, fields, fields.values())
        self._shard.business_centers[center.id] = center

    def put_account(self, fields: dict[str, Any]) -> None:
        """Add an ad account to its Business Center."""
        named = (fields[name] for name in ("id", "billing", "buying_type", "zone", "owned"))
        self._account = account = AdAccount(self._center, *named)
        _fill(account, fields, fields.values())
        self._center.accounts[account.id] = self._shard.accounts[account.id] = account
        self._center.daily_campaigns += account.daily_campaigns
        account.business_center.memory.add(CAMPAIGN_BYTES * (account.daily_campaigns + pinned(account)))
        self._shard.timers.add_turn_over(account)

    def put_campaign(self, budget: list[Any] | None, causes: int, id: str, order: int) -> None:
        """Add a campaign to its ad account. Its fields come in order, because a start loads a hundred thousand."""
        campaign = Campaign(self._account, id, order, budget_of(budget))
        campaign.causes = causes
        self._shard.campaigns.add(campaign)

    def put_grant(self, fields: dict[str, Any]) -> None:
        """Add a grant to its Business Center."""
        self._grant = grant = Grant(self._center, fields["kind"], fields["id"], fields["order"], fields["expires_at"])
        _fill(grant, fields, fields.values())
        self._center.grants[grant.kind, grant.id] = grant

    def put_holding(self, fields: dict[str, Any]) -> None:
        """Add a holding of a grant to its holder's pocket."""
        holding = Holding(self._grant, fields["account"])
        pocket_of(self._center, holding).put(holding, fields["remaining"])


_PUT: Final[dict[str, tuple[type, Callable[[_Loader, dict[str, Any]], None]]]] = {
    "BusinessCenter": (BusinessCenter, _Loader.put_center),
    "AdAccount": (AdAccount, _Loader.put_account),
    "Grant": (Grant, _Loader.put_grant),
    "Holding": (Holding, _Loader.put_holding),
}
