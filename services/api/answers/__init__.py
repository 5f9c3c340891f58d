"""What several rooms answer with: models for OpenAPI, figures, long answers, cursors, checkpoints and calendars.

Nothing here has a route, or knows the process.
"""
