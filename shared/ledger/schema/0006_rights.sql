-- What each role may do with the ledger, and nothing else: docs/database.md holds the same as a table, and a test compares
-- it with the catalog. What a role may do with a read model, the read model's own migration says. The roles, and which may
-- connect, belong to the server, not to this database: shared/runtime/roles.py sees to them.

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

-- What every follower may: read the entries, and how far they go. Each is a member, and may write its own read model.
GRANT SELECT ON ledger.entries, ledger.shards TO drawdown_follower;

-- The API reads. Of the ledger it writes nothing: what it hands back from quarantine, the writer reads as it came, so that
-- a process that speaks for the API cannot make up a record. Of the checkpoints it reads the table of each follower: the
-- table above them waits with each of them.
GRANT SELECT ON ledger.entries, ledger.batches, ledger.outcomes, ledger.policies, ledger.time_zones, ledger.ad_accounts,
    ledger.quarantine, ledger.quarantine_replays, ledger.forwarded_waiting, ledger.operators_log, ledger.shards,
    ledger.allocators, ledger.shard_states, ledger.checkpoints, ledger.checkpoints_outcomes TO drawdown_api;
GRANT EXECUTE ON FUNCTION ledger.replay_quarantined TO drawdown_api;

-- The auditor reads what it compares, and looks for rows of shards that do not exist.
GRANT SELECT ON ledger.entries, ledger.batches, ledger.outcomes, ledger.policies, ledger.time_zones, ledger.ad_accounts,
    ledger.resting_campaigns, ledger.quarantine, ledger.quarantine_replays, ledger.forwarded, ledger.operators_log,
    ledger.shards, ledger.shard_states, ledger.checkpoints, ledger.checkpoints_outcomes TO drawdown_auditor;
