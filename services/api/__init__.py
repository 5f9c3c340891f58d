"""The HTTP API: finance commands in, balances, budgets, ledger, quarantine and deals out.

`app` lists the routes. They are in rooms: `commands`, `present`, `past`, `quarantine`, `operating` (readiness) and
`described` (OpenAPI, `/docs`). Each request first passes the `door`.
"""
