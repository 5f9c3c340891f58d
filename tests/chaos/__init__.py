"""Fault injection: kills services at every step, takes servers away, and checks the result from outside."""
