"""Vouchers and ad credits: granting, allocating by hand, moving with a balance (domain page, sections 1, 2.7, 3)."""

from dataclasses import dataclass, field

from shared.rules.command_types import AllocateAdCredit, Command, GrantAdCredit, GrantVoucher
from shared.rules.entries import Step
from shared.rules.pauses import pinned, weigh_pinned
from shared.rules.refusal import require
from shared.rules.state import AdAccount, BusinessCenter, Grant, Holding, pocket_of

# Business Center, "voucher" or "ad_credit", the grant's id.
GrantKey = tuple[str, str, str]


@dataclass(slots=True)
class RecordedGrant:
    """A grant that has left memory, read from the ledger's entries.

    `position` is that of its `grant` entry. `account_id` is the account that received it (None: the Business Center).
    `expires_at` is in µs since the Unix epoch. `campaigns` are those that it is tied to (None: untied). `allocated` has
    the position and the account of each allocation by hand, in order.
    """

    position: int
    expires_at: int | None
    campaigns: frozenset[str] | None
    account_id: str | None
    allocated: list[tuple[int, str]] = field(default_factory=list)


def named_by(command: Command) -> GrantKey | None:
    """Return the key of the grant that a command names, or None."""
    if isinstance(command, GrantVoucher):
        return command.business_center_id, "voucher", command.voucher_id
    if isinstance(command, GrantAdCredit | AllocateAdCredit):
        return command.business_center_id, "ad_credit", command.ad_credit_id
    return None


def grant(step: Step, center: BusinessCenter, account: AdAccount | None, new: Grant, amount: int) -> None:
    """Add a new grant of `amount` micros to an account, or to the BC if `account` is None."""
    if account is not None and new.campaigns is not None:
        before = pinned(account)
        account.has_tied = True
        weigh_pinned(account, before)
    holding = Holding(new, account)
    pocket_of(center, holding).put(holding, amount)
    _write(step, "grant", center, holding, amount)


def allocate(step: Step, center: BusinessCenter, account: AdAccount, credit: Grant, amount: int) -> None:
    """Move ad credit from the BC's pool to an account. It can pay only there. Raise Refused if the pool holds less."""
    pool = credit.holdings[0]
    require(amount <= pool.remaining, "insufficient_funds", "the pool does not hold that much of the ad credit")
    target = account.holdings.get(credit) or Holding(credit, account)
    pocket_of(center, pool).take(pool, amount)
    pocket_of(center, target).put(target, amount)
    _write(step, "allocation_out", center, pool, -amount)
    _write(step, "allocation_in", center, target, amount)


def move_vouchers_to_business_center(step: Step, account: AdAccount) -> None:
    """Move the account's untied vouchers, used up or not, to the BC, with id and expiry. Tied ones stay (3.3)."""
    vouchers = [grant for grant in account.holdings if grant.kind == "voucher" and grant.campaigns is None]
    for voucher in sorted(vouchers, key=lambda voucher: voucher.order):
        _move_to_business_center(step, account, voucher)


def restore(center: BusinessCenter, kind: str, id: str, recorded: RecordedGrant, now: int, position: int) -> Grant:
    """Return a grant that had left memory, as it was at this time (µs) and position. Its holders hold nothing."""
    expires_at = recorded.expires_at
    grant = Grant(center, kind, id, recorded.position, expires_at, recorded.campaigns)
    grant.expired = expires_at is not None and expires_at <= now
    account = None if recorded.account_id is None else center.accounts[recorded.account_id]
    Holding(grant, None if account is None or _has_moved(grant, account) else account)
    for allocated_at, account_id in recorded.allocated:
        if allocated_at <= position and grant not in center.accounts[account_id].holdings:
            Holding(grant, center.accounts[account_id])
    return grant


def _has_moved(grant: Grant, account: AdAccount) -> bool:
    """Return whether the grant moved to the BC when the account joined automatic allocation. Later grants stay."""
    joined = account.participates and grant.order < account.business_center.automatic_position
    return joined and grant.campaigns is None


def _move_to_business_center(step: Step, account: AdAccount, voucher: Grant) -> None:
    center = account.business_center
    held = account.holdings.pop(voucher)
    amount = held.remaining
    pocket_of(center, held).take(held, amount)
    voucher.holdings.clear()
    moved = Holding(voucher, None)
    pocket_of(center, moved).put(moved, amount)
    if amount:
        _write(step, "transfer_out", center, held, -amount, account)
        _write(step, "transfer_in", center, moved, amount, account)


def _write(
    step: Step, kind: str, center: BusinessCenter, holding: Holding, amount: int, account: AdAccount | None = None
) -> None:
    concerned = holding.account or account
    step.write(
        kind,
        center.id,
        concerned.id if concerned else None,
        amount=amount,
        holder="business_center" if holding.account is None else "ad_account",
        pocket=holding.grant.kind,
        grant_id=holding.grant.id,
    )
