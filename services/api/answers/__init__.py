"""Answers: the parts that several packages share, such as models, figures, long answers, cursors and calendars.

Nothing here has a route, or knows the process.
"""
