"""The words that the ledger is written in. Each is defined once, with the properties that follow from it.

docs/ledger.md says what a kind of entry means, docs/runbook.md what to do about a reason. A ledger may hold words of a
newer version: a reader that only shows them passes them on.
"""

from typing import Final, NamedTuple

# Why a record is quarantined, in the order of the checks.
QUARANTINE_REASONS: Final = (
    *("too_large", "malformed", "invalid", "unknown_business_center", "unknown_ad_account", "currency_mismatch"),
    *("too_old", "too_far_ahead", "content_conflict", "unknown_reversal", "reversal_mismatch"),
    *("reversal_exceeds_spend", "amount_unusual", "too_many_campaigns", "skipped", "internal_error"),
)

HOLDERS: Final = ("ad_account", "business_center")
# The standard policy (domain page, section 2). A policy may name these pockets, in another order, and no others.
AD_ACCOUNT_WATERFALL: Final = ("voucher", "ad_credit", "cash", "credit")
BUSINESS_CENTER_WATERFALL: Final = ("voucher", "cash", "credit_line")
# A Business Center also holds a pool of ad credit, which is allocated by hand and never drawn from.
AD_ACCOUNT_POCKETS: Final = AD_ACCOUNT_WATERFALL
POCKETS: Final = (*AD_ACCOUNT_POCKETS, "credit_line")
# Spend that is paid from these counts towards incentives (domain page, section 1).
CASH_POCKETS: Final = ("cash", "credit", "credit_line")

# The causes of a pause, and of overdelivery. Sorted, because answers and signals list them sorted.
CAUSES: Final = ("ad_account_balance", "ad_account_budget", "business_center_balance", "campaign_budget")


class EntryKind(NamedTuple):
    """A kind of entry, and what follows from it.

    `group` is "spend", "reversal", "movement" (money without a spend) or "fact" (no money). `sign` is that of its
    amount: -1 takes money, 1 gives, 0 may do both, None has no amount. `holders` lists the holders of the pocket that
    it names; if it is empty, the entry names no pocket. `counts_as` is its place in the identity that auditors check,
    money in = held + billed + forfeited: "in", "billed", "forfeited", "moved" (adds up to zero by itself), or None if
    nobody is billed for it. `read_by` lists the read models whose fold names the kind. Other folds take all money, and
    do not look at the kind.
    """

    name: str
    group: str
    sign: int | None
    holders: tuple[str, ...] = ()
    counts_as: str | None = None
    read_by: tuple[str, ...] = ("balance",)


_ACCOUNT, _CENTER = ("ad_account",), ("business_center",)
# In the order in which docs/ledger.md explains them.
KINDS: Final = (
    EntryKind("voucher_debit", "spend", -1, _ACCOUNT, "billed"),
    EntryKind("ad_credit_debit", "spend", -1, _ACCOUNT, "billed"),
    EntryKind("cash_debit", "spend", -1, _ACCOUNT, "billed"),
    EntryKind("credit_debit", "spend", -1, _ACCOUNT, "billed"),
    EntryKind("business_center_draw", "spend", -1, _CENTER, "billed"),
    EntryKind("overdelivery", "spend", 1),
    # For an overdelivered part it names no pocket, and takes.
    EntryKind("reversal", "reversal", 0, HOLDERS, "billed"),
    # It names the grant that has expired, and no pocket.
    EntryKind("forfeit", "reversal", 1, (), "forfeited"),
    EntryKind("deposit", "movement", 1, HOLDERS, "in"),
    EntryKind("grant", "movement", 1, HOLDERS, "in"),
    EntryKind("expiry", "movement", -1, HOLDERS, "forfeited"),
    EntryKind("allocation_out", "movement", -1, _CENTER, "moved"),
    EntryKind("allocation_in", "movement", 1, _ACCOUNT, "moved"),
    EntryKind("transfer_out", "movement", -1, HOLDERS, "moved"),
    EntryKind("transfer_in", "movement", 1, HOLDERS, "moved"),
    EntryKind("credit_limit_change", "movement", 0, _CENTER, "in"),
    EntryKind("credit_repayment", "movement", 1, _CENTER, "in"),
    EntryKind("business_center_opened", "fact", None),
    EntryKind("ad_account_opened", "fact", None),
    EntryKind("automatic_allocation_enabled", "fact", None),
    EntryKind("budget_set", "fact", None),
    EntryKind("budget_synced", "fact", None),
    EntryKind("budget_reset", "fact", None),
    EntryKind("campaign_budget_set", "fact", None),
    EntryKind("largest_spend_set", "fact", None),
    EntryKind("pause", "fact", None, read_by=("balance", "signals")),
    EntryKind("resume", "fact", None, read_by=("balance", "signals")),
)
KIND: Final = {kind.name: kind for kind in KINDS}
ENTRY_KINDS: Final = tuple(KIND)
MONEY_KINDS: Final = tuple(kind.name for kind in KINDS if kind.sign is not None)
# The kinds by which money comes into the books.
IN_KINDS: Final = tuple(kind.name for kind in KINDS if kind.counts_as == "in")
# The kind of the entry for a payment from an ad account's own pocket.
DEBITS: Final = {pocket: f"{pocket}_debit" for pocket in AD_ACCOUNT_POCKETS}
BUDGET_KINDS: Final = ("budget_set", "budget_synced", "budget_reset")
DELIVERY_KINDS: Final = ("pause", "resume")

# The types of finance commands.
COMMAND_TYPES: Final = (
    *("open_business_center", "open_ad_account", "deposit_cash", "set_credit_line", "repay_credit", "grant_voucher"),
    *("grant_ad_credit", "allocate_ad_credit", "transfer_balance", "enable_automatic_allocation"),
    *("disable_automatic_allocation", "set_budget", "reset_budget", "set_campaign_budget", "set_largest_spend"),
)


class ActorRole(NamedTuple):
    """A role of actors, and what it may do (domain page, section 4.7).

    `commands` lists the types of commands that it may give; with `needs_finance_roles`, only in a Business Center that
    has finance roles. With `reads_finance` the API shows it money and the ledger; with `writes_finance` it may also
    register deals and replay quarantined records. Every role may read delivery and budgets.
    """

    name: str
    commands: tuple[str, ...] = ()
    needs_finance_roles: bool = False
    reads_finance: bool = False
    writes_finance: bool = False


_BUDGETS = ("set_budget", "reset_budget", "set_campaign_budget")
_NO_BUDGETS = tuple(type for type in COMMAND_TYPES if type not in _BUDGETS)
ACTOR_ROLES: Final = (
    ActorRole("admin", COMMAND_TYPES, reads_finance=True, writes_finance=True),
    ActorRole("finance_manager", COMMAND_TYPES, needs_finance_roles=True, reads_finance=True, writes_finance=True),
    ActorRole("finance_analyst", reads_finance=True),
    ActorRole("standard", ("set_campaign_budget",)),
    ActorRole("system", _NO_BUDGETS, reads_finance=True, writes_finance=True),
)
ROLE: Final = {role.name: role for role in ACTOR_ROLES}
ROLES: Final = tuple(ROLE)
# How a command may come (`ways`).
WAYS: Final = ("api", "topic")

# Why a command is refused, in the order of the checks. `conflict` usually means that another command has this id.
OUTCOME_CODES: Final = (
    *("invalid", "not_found", "permission_denied", "already_exists", "irreversible", "not_eligible"),
    *("budget_change_limit", "limit_reached", "insufficient_funds", "conflict"),
)
OUTCOME_STATUSES: Final = ("accepted", "rejected")

# Why an ad account takes no part in automatic allocation, in the order of the checks.
LEFT_OUT_REASONS: Final = ("not_owned", "not_auction", "not_monthly_invoicing")

BUDGET_MODES: Final = ("daily", "monthly", "custom", "lifetime", "unlimited")
