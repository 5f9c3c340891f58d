"""The golden ledger: a small recorded ledger with every kind of entry. Every later version must give the same bytes.

`ledger.jsonl` is only appended to. docs/decisions/changing-a-rule.md says when.
"""
