"""Auditor: proves from the ledger alone that nothing was lost, doubled, reordered or edited. It never writes."""
