-- Everything that each role may do with the ledger. docs/database.md has the same as a table, and a test compares it with
-- the catalog. The migration of each read model grants the rights on it. The roles themselves, and which of them may
-- connect, belong to the server instead of this database: shared/runtime/roles.py maintains them.

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA ledger FROM PUBLIC;
GRANT USAGE ON SCHEMA ledger TO drawdown_allocation, drawdown_follower, drawdown_api, drawdown_auditor;
GRANT SELECT ON public.migrations TO drawdown_allocation, drawdown_follower, drawdown_api, drawdown_auditor;

-- The writer.
GRANT SELECT, INSERT ON ledger.entries, ledger.batches, ledger.outcomes, ledger.policies, ledger.time_zones,
    ledger.ad_accounts, ledger.resting_campaigns TO drawdown_allocation;
GRANT INSERT ON ledger.quarantine TO drawdown_allocation;
GRANT SELECT, UPDATE ON ledger.shards TO drawdown_allocation;
GRANT SELECT, INSERT, UPDATE ON ledger.snapshots, ledger.checkpoints_outcomes TO drawdown_allocation;
GRANT SELECT, INSERT, UPDATE, DELETE ON ledger.allocators, ledger.shard_states TO drawdown_allocation;
GRANT SELECT, INSERT, DELETE ON ledger.forwarded TO drawdown_allocation;
GRANT SELECT ON ledger.waiting_records, ledger.operators_log TO drawdown_allocation;
GRANT EXECUTE ON FUNCTION ledger.moment, ledger.move_lease, ledger.end_sessions, ledger.make_quarantine_part,
    ledger.note_offset_skipped TO drawdown_allocation;

-- Every follower is a member of this role, which may read the entries and the position of each shard. The migration of a
-- read model lets its follower write it.
GRANT SELECT ON ledger.entries, ledger.shards TO drawdown_follower;

-- The API reads the ledger and writes nothing to it. The writer reads the bytes of a replayed record from quarantine, so
-- that a process with the API's login cannot invent a record. The API reads the checkpoints of each follower from the
-- follower's own partition, because a query of the whole table waits for the locks on every partition.
GRANT SELECT ON ledger.entries, ledger.batches, ledger.outcomes, ledger.policies, ledger.time_zones, ledger.ad_accounts,
    ledger.quarantine, ledger.quarantine_replays, ledger.forwarded_waiting, ledger.operators_log, ledger.shards,
    ledger.allocators, ledger.shard_states, ledger.checkpoints, ledger.checkpoints_outcomes TO drawdown_api;
GRANT EXECUTE ON FUNCTION ledger.replay_quarantined TO drawdown_api;

-- The auditor reads everything that it compares, and looks for rows of shards that do not exist.
GRANT SELECT ON ledger.entries, ledger.batches, ledger.outcomes, ledger.policies, ledger.time_zones, ledger.ad_accounts,
    ledger.resting_campaigns, ledger.quarantine, ledger.quarantine_replays, ledger.forwarded, ledger.operators_log,
    ledger.shards, ledger.shard_states, ledger.snapshots, ledger.checkpoints, ledger.checkpoints_outcomes
    TO drawdown_auditor;
