"""Signals: a follower that tells ad delivery what pauses and what resumes."""
