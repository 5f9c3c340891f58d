-- What each role may do, and nothing else. docs/database.md holds the same as a table; a test compares it with the catalog.
-- The roles, and who may connect, belong to the server, not to this database: shared/runtime/roles.py sees to them.

REVOKE ALL ON ALL TABLES IN SCHEMA ledger, balance, incentives, signals
    FROM drawdown_allocation, drawdown_follower, drawdown_api, drawdown_auditor;
REVOKE ALL ON SCHEMA ledger, balance, incentives, signals
    FROM drawdown_allocation, drawdown_follower, drawdown_api, drawdown_auditor;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA ledger FROM PUBLIC;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT SELECT ON public.migrations TO drawdown_allocation, drawdown_follower, drawdown_api, drawdown_auditor;

-- The writer.
GRANT USAGE ON SCHEMA ledger TO drawdown_allocation;
GRANT SELECT, INSERT ON ledger.entries, ledger.batches, ledger.outcomes, ledger.policies, ledger.ad_accounts
    TO drawdown_allocation;
GRANT INSERT ON ledger.quarantine TO drawdown_allocation;
GRANT SELECT, UPDATE ON ledger.shards TO drawdown_allocation;
GRANT SELECT, INSERT, UPDATE, DELETE ON ledger.allocators TO drawdown_allocation;
GRANT SELECT, INSERT, DELETE ON ledger.forwarded TO drawdown_allocation;
GRANT SELECT, INSERT, UPDATE ON ledger.snapshots, ledger.checkpoints TO drawdown_allocation;
GRANT EXECUTE ON FUNCTION ledger.moment, ledger.move_lease, ledger.close_batch TO drawdown_allocation;

-- Ends what is left of an owner that does not renew, as before, but only sessions of the same login: to call a session
-- by the writer's name is open to everybody.
CREATE OR REPLACE FUNCTION ledger.end_sessions(owner text) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND usename = session_user AND pid <> pg_backend_pid()
        AND application_name LIKE 'drawdown allocation %' AND right(application_name, 8) = right(owner, 8)
$$;

-- What every follower may: read the entries and move its checkpoint. Each is a member, and may write its own read model.
GRANT USAGE ON SCHEMA ledger TO drawdown_follower;
GRANT SELECT ON ledger.entries, ledger.shards TO drawdown_follower;
GRANT SELECT, INSERT, UPDATE ON ledger.checkpoints TO drawdown_follower;

GRANT USAGE ON SCHEMA balance TO drawdown_balance;
GRANT SELECT ON ALL TABLES IN SCHEMA balance TO drawdown_balance;
GRANT INSERT ON ALL TABLES IN SCHEMA balance TO drawdown_balance;
GRANT UPDATE ON balance.budgets, balance.custom_budgets, balance.campaigns, balance.pauses, balance.pockets,
    balance.credit_limits, balance.grants, balance.business_center_days, balance.ad_account_days, balance.campaign_days
    TO drawdown_balance;
GRANT DELETE ON balance.custom_budgets TO drawdown_balance;

GRANT USAGE ON SCHEMA incentives TO drawdown_incentives;
GRANT SELECT, INSERT, UPDATE ON incentives.cash_spend TO drawdown_incentives;

GRANT USAGE ON SCHEMA signals TO drawdown_signals;
GRANT SELECT, INSERT, UPDATE ON signals.latest, signals.incarnations TO drawdown_signals;

-- Whoever moves a checkpoint moves its own: another's would skip entries for it.
ALTER TABLE ledger.checkpoints ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_read ON ledger.checkpoints FOR SELECT USING (true);
CREATE POLICY outcomes ON ledger.checkpoints TO drawdown_allocation USING (follower = 'outcomes');
CREATE POLICY balance ON ledger.checkpoints TO drawdown_balance USING (follower = 'balance');
CREATE POLICY incentives ON ledger.checkpoints TO drawdown_incentives USING (follower = 'incentives');
CREATE POLICY signals ON ledger.checkpoints TO drawdown_signals USING (follower = 'signals');

-- The API reads, and keeps the deals. Of the ledger it writes nothing: handing a quarantined record back to its shard
-- copies the record as it came, so that nobody who speaks for the API can make up one.
GRANT USAGE ON SCHEMA ledger, balance, incentives TO drawdown_api;
GRANT SELECT ON ledger.entries, ledger.batches, ledger.outcomes, ledger.quarantine, ledger.quarantine_replays,
    ledger.policies, ledger.ad_accounts, ledger.shards, ledger.checkpoints TO drawdown_api;
GRANT SELECT ON ALL TABLES IN SCHEMA balance, incentives TO drawdown_api;
GRANT INSERT, UPDATE ON incentives.deals TO drawdown_api;

CREATE FUNCTION ledger.replay_quarantined(
    shards smallint[], sequences bigint[], targets smallint[], replayed_at timestamptz
) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO ledger.forwarded (shard, topic, partition, "offset", key, raw, headers)
    SELECT target, topic, partition, "offset", key, raw, headers
    FROM ledger.quarantine JOIN unnest(shards, sequences, targets) AS wanted (shard, sequence, target)
        USING (shard, sequence)
    ORDER BY shard, sequence;
    INSERT INTO ledger.quarantine_replays (shard, sequence, replayed_at)
    SELECT shard, sequence, replayed_at FROM unnest(shards, sequences) AS wanted (shard, sequence);
$$;
REVOKE ALL ON FUNCTION ledger.replay_quarantined FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger.replay_quarantined TO drawdown_api;

-- The auditor reads what it compares.
GRANT USAGE ON SCHEMA ledger, balance, incentives, signals TO drawdown_auditor;
GRANT SELECT ON ledger.entries, ledger.batches, ledger.outcomes, ledger.quarantine, ledger.policies, ledger.ad_accounts,
    ledger.shards, ledger.checkpoints TO drawdown_auditor;
GRANT SELECT ON ALL TABLES IN SCHEMA balance TO drawdown_auditor;
GRANT SELECT ON incentives.cash_spend, signals.latest TO drawdown_auditor;

-- The partitions are read and written by their own names too. What was granted on those that are there was just revoked.
DO $$
DECLARE
    part regclass;
BEGIN
    FOR part IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'ledger.entries'::regclass LOOP
        EXECUTE format('GRANT SELECT, INSERT ON %s TO drawdown_allocation', part);
        EXECUTE format('GRANT SELECT ON %s TO drawdown_follower, drawdown_api, drawdown_auditor', part);
    END LOOP;
END $$;
