"""The HTTP API: finance commands in, balances, budgets, ledger, quarantine and deals out.

`app` lists the routes. They are in packages: `commands`, `present`, `past`, `incentives`, `quarantine`, `operating`
(readiness) and `described` (OpenAPI, `/docs`). Each request first passes the `door`. Routes reach the process through
`context`, which holds the results of `watching`; `answers` has the parts that the answers of several packages share.
"""
