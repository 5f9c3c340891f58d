"""Incentives: the routes of deals, pacing and spend detail. `services/incentives` has their rules and reads.

Each module has a `router`.
"""
