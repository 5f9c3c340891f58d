"""Incentives: a follower that keeps the cash spend that deals are paced by."""
