-- What the writer of each shard says of itself, about once a second: /readyz of the API tells it to people.
-- A view, not a fact: nothing is decided by it, and a row whose reported_at is old says that nobody writes the shard.
-- For `waiting_since` the oldest record that waits counts; both are null or 0 where none does.

CREATE TABLE ledger.shard_states (
    shard smallint PRIMARY KEY,
    owner text NOT NULL,
    state text NOT NULL,  -- loading, writing, waiting, stopped
    detail text NOT NULL,
    waiting_records bigint NOT NULL,
    waiting_since timestamptz,
    since timestamptz NOT NULL,  -- of the state
    reported_at timestamptz NOT NULL
);

GRANT SELECT, INSERT, UPDATE, DELETE ON ledger.shard_states TO drawdown_allocation;
GRANT SELECT ON ledger.shard_states TO drawdown_api, drawdown_auditor;
