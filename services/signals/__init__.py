"""Signals: a follower that publishes pauses and resumes to ad delivery."""
