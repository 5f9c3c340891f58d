-- Grants of which nothing is left leave the writer's memory: one that is needed again is found by its entries.

DO $$
DECLARE
    part regclass;
BEGIN
    FOR part IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'ledger.entries'::regclass LOOP
        EXECUTE format('CREATE INDEX ON %s (business_center_id, grant_id) WHERE kind IN (''grant'', ''allocation_in'')', part);
    END LOOP;
END $$;

-- As before, with that index.
CREATE OR REPLACE FUNCTION ledger.create_shards(shards integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    part text;
BEGIN
    FOR n IN 0 .. shards - 1 LOOP
        CONTINUE WHEN EXISTS (SELECT FROM ledger.shards WHERE shard = n);
        part := format('ledger.entries_%s', n);
        EXECUTE format('CREATE TABLE %s PARTITION OF ledger.entries FOR VALUES IN (%s)', part, n);
        EXECUTE format('ALTER TABLE %s ADD PRIMARY KEY (position)', part);
        -- Exactly once, enforced here: only spends and reversals have a day.
        EXECUTE format('CREATE UNIQUE INDEX ON %s (source_event_id) WHERE part = 0 AND day IS NOT NULL', part);
        EXECUTE format('CREATE INDEX ON %s (reverses) WHERE reverses IS NOT NULL', part);
        EXECUTE format('CREATE INDEX ON %s (position) WHERE kind IN (''pause'', ''resume'')', part);
        EXECUTE format('CREATE INDEX ON %s (business_center_id, grant_id) WHERE kind IN (''grant'', ''allocation_in'')', part);
        PERFORM ledger.make_append_only(part::regclass);
        EXECUTE format('GRANT SELECT, INSERT ON %s TO drawdown_allocation', part);
        EXECUTE format('GRANT SELECT ON %s TO drawdown_follower, drawdown_api, drawdown_auditor', part);
        INSERT INTO ledger.shards (shard) VALUES (n);
    END LOOP;
END $$;
