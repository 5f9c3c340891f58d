"""Code that several services share: contracts, rules, the ledger, the runtime."""
