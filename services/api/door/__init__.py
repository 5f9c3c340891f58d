"""The door: what every request passes before any route sees it, and how every answer leaves.

The way in is `gate.Gate`, on a connection of `protocol.BoundedProtocol`. Routes use `access` (who asks), `bodies` (what
was sent) and `errors` (what is wrong).
"""
