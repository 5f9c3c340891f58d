-- What operators did to the ledger by hand, and why: a record was passed over, a month of quarantine was dropped.
CREATE TABLE ledger.operators_log (
    sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY CHECK (sequence > 0),
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    operator text NOT NULL,                 -- the login, and who was at the terminal as far as that is known
    action text NOT NULL,                   -- offsets_skipped, quarantine_dropped, …
    because text NOT NULL CHECK (because <> ''),
    details json NOT NULL
);
SELECT ledger.make_append_only('ledger.operators_log');

GRANT SELECT ON ledger.operators_log TO drawdown_allocation, drawdown_api, drawdown_auditor;
