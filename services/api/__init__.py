"""The HTTP API: finance commands in, balances, budgets, ledger, quarantine and deals out."""
