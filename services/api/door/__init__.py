"""The door: every request passes it before any route sees it, and every answer leaves through it.

The way in is `gate.Gate`, on a connection of `protocol.BoundedProtocol`. Routes use `access` for the caller, `bodies`
for the body, and `errors` for error answers.
"""
