"""What every service builds on: contracts, rules, the ledger, the runtime."""
