"""The golden ledger: a small recorded one, with every kind of entry, that must come to the same bytes for ever.

`ledger.jsonl` is only ever appended to. docs/decisions/changing-a-rule.md says when.
"""
