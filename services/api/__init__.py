"""The HTTP API: finance commands in, balances, budgets, ledger, quarantine and deals out.

`app` lists the routes. They are in rooms: `commands`, `present`, `past`, `incentives`, `quarantine`, `operating`
(readiness) and `described` (OpenAPI, `/docs`). Each request first passes the `door`. Routes reach the process through
`context`, which holds what `watching` sees beside the requests; what several of them answer with is in `answers`.
"""
