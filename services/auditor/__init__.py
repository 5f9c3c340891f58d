"""Auditor: proves from the ledger alone that nothing was lost, duplicated, reordered or edited. It never writes."""
