"""The words that the ledger is written in: each in one place, in the order in which the documents give them.

docs/ledger.md says what a kind of entry means, docs/runbook.md what to do about a reason. A ledger may hold words of a
newer version: whoever only shows what it holds passes them on.
"""

from typing import Final

# Why a record is quarantined, in the order in which it is checked.
QUARANTINE_REASONS: Final = (
    *("too_large", "malformed", "invalid", "unknown_business_center", "unknown_ad_account", "currency_mismatch"),
    *("too_old", "too_far_ahead", "content_conflict", "unknown_reversal", "reversal_mismatch"),
    *("reversal_exceeds_spend", "amount_unusual", "too_many_campaigns", "skipped", "internal_error"),
)

HOLDERS: Final = ("ad_account", "business_center")
AD_ACCOUNT_POCKETS: Final = ("voucher", "ad_credit", "cash", "credit")
BUSINESS_CENTER_POCKETS: Final = ("voucher", "cash", "credit_line", "ad_credit")
POCKETS: Final = (*AD_ACCOUNT_POCKETS, "credit_line")
# Spend that is paid from these counts towards incentives (domain page, section 1).
CASH_POCKETS: Final = ("cash", "credit", "credit_line")

# What stops an ad account or a campaign, and what spend is overdelivered by; sorted, as answers and signals have them.
CAUSES: Final = ("ad_account_balance", "ad_account_budget", "business_center_balance", "campaign_budget")

DEBIT_KINDS: Final = ("voucher_debit", "ad_credit_debit", "cash_debit", "credit_debit")
SPEND_KINDS: Final = (*DEBIT_KINDS, "business_center_draw", "overdelivery")
REVERSAL_KINDS: Final = ("reversal", "forfeit")
MOVEMENT_KINDS: Final = (
    *("deposit", "grant", "expiry", "allocation_out", "allocation_in", "transfer_out", "transfer_in"),
    *("credit_limit_change", "credit_repayment"),
)
MONEY_KINDS: Final = (*SPEND_KINDS, *REVERSAL_KINDS, *MOVEMENT_KINDS)
BUDGET_KINDS: Final = ("budget_set", "budget_synced", "budget_reset")
DELIVERY_KINDS: Final = ("pause", "resume")
FACT_KINDS: Final = (
    *("business_center_opened", "ad_account_opened", "automatic_allocation_enabled"),
    *(*BUDGET_KINDS, "campaign_budget_set", "largest_spend_set", *DELIVERY_KINDS),
)
ENTRY_KINDS: Final = (*MONEY_KINDS, *FACT_KINDS)

# What finance commands ask for, and whom they may name as asking.
COMMAND_TYPES: Final = (
    *("open_business_center", "open_ad_account", "deposit_cash", "set_credit_line", "repay_credit", "grant_voucher"),
    *("grant_ad_credit", "allocate_ad_credit", "transfer_balance", "enable_automatic_allocation"),
    *("disable_automatic_allocation", "set_budget", "reset_budget", "set_campaign_budget", "set_largest_spend"),
)
ROLES: Final = ("admin", "finance_manager", "finance_analyst", "standard", "system")
# By which way a command came.
WAYS: Final = ("api", "topic")

# Why a command is refused, in the order in which it is checked; a conflict is another command with the same id.
OUTCOME_CODES: Final = (
    *("invalid", "not_found", "permission_denied", "already_exists", "irreversible", "not_eligible"),
    *("budget_change_limit", "limit_reached", "insufficient_funds", "conflict"),
)
OUTCOME_STATUSES: Final = ("accepted", "rejected")

# Why an ad account takes no part in automatic allocation: the first of these.
LEFT_OUT_REASONS: Final = ("not_owned", "not_auction", "not_monthly_invoicing")

BUDGET_MODES: Final = ("daily", "monthly", "custom", "lifetime", "unlimited")
