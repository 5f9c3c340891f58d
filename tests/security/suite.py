"""All checks, in the order in which they run. Attacks that could stop the system come last."""

from tests.security import bombs, commands, containers, database, http, kafka, latency, quarantine, tokens

CHECKS = (
    *containers.CHECKS,
    *tokens.CHECKS,
    *http.CHECKS,
    *kafka.CHECKS,
    *commands.CHECKS,
    *database.CHECKS,
    *quarantine.CHECKS,
    *latency.CHECKS,
    *bombs.CHECKS,
    *database.LAST,
    *bombs.LAST,
)
