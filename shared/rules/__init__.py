"""The money rules. They are pure: no I/O, no clock, no framework. docs/rules.md says where each rule lives."""
