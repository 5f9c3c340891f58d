-- A follower's checkpoints lie in a table of its own. Whoever may move a checkpoint may also lock the table that it lies in,
-- against all who read it: so each follower holds up nobody but itself and its own readers.

ALTER TABLE ledger.checkpoints RENAME TO checkpoints_before;
ALTER INDEX ledger.checkpoints_pkey RENAME TO checkpoints_before_pkey;

CREATE TABLE ledger.checkpoints (
    follower text NOT NULL,
    shard smallint NOT NULL CHECK (shard >= 0),
    position bigint NOT NULL DEFAULT 0 CHECK (position >= 0),
    recorded_at timestamptz,                -- ledger time of that position
    PRIMARY KEY (follower, shard)
) PARTITION BY LIST (follower);
CREATE TABLE ledger.checkpoints_outcomes PARTITION OF ledger.checkpoints FOR VALUES IN ('outcomes');
CREATE TABLE ledger.checkpoints_balance PARTITION OF ledger.checkpoints FOR VALUES IN ('balance');
CREATE TABLE ledger.checkpoints_incentives PARTITION OF ledger.checkpoints FOR VALUES IN ('incentives');
CREATE TABLE ledger.checkpoints_signals PARTITION OF ledger.checkpoints FOR VALUES IN ('signals');

INSERT INTO ledger.checkpoints SELECT follower, shard, position, recorded_at FROM ledger.checkpoints_before;
DROP TABLE ledger.checkpoints_before;

GRANT SELECT, INSERT, UPDATE ON ledger.checkpoints_outcomes TO drawdown_allocation;
GRANT SELECT, INSERT, UPDATE ON ledger.checkpoints_balance TO drawdown_balance;
GRANT SELECT, INSERT, UPDATE ON ledger.checkpoints_incentives TO drawdown_incentives;
GRANT SELECT, INSERT, UPDATE ON ledger.checkpoints_signals TO drawdown_signals;
-- The table above them all reads them together, and waits with each of them. The API reads by the follower's name.
GRANT SELECT ON ledger.checkpoints, ledger.checkpoints_outcomes, ledger.checkpoints_balance, ledger.checkpoints_incentives,
    ledger.checkpoints_signals TO drawdown_api, drawdown_auditor;
