"""Commands: signs, publishes and answers them.

The way in is `publishing.router`.
"""
