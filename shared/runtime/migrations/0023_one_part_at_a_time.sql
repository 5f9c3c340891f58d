-- Another transaction's part may be seen a moment before this session is told that quarantine has got it, and until then
-- rows of that month have no place. Whoever made it keeps the lock until all sessions are told, so this waits for it
-- also where the part seems to be there. Asked once a month by each writer.
CREATE OR REPLACE FUNCTION ledger.make_quarantine_part(moment timestamptz) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    month timestamptz := date_trunc('month', moment, 'UTC');
    next_month timestamptz := (month AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC';
    part text := 'ledger.quarantine_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM');
BEGIN
    LOCK TABLE ledger.quarantine IN SHARE UPDATE EXCLUSIVE MODE;
    IF to_regclass(part) IS NULL THEN
        IF (SELECT count(*) FROM pg_inherits WHERE inhparent = 'ledger.quarantine'::regclass) >= 600 THEN
            RAISE EXCEPTION 'quarantine has parts of 600 months: drop some before that of % begins', month;
        END IF;
        EXECUTE format('CREATE TABLE %s (LIKE ledger.quarantine INCLUDING CONSTRAINTS)', part);
        EXECUTE format('ALTER TABLE %s ADD PRIMARY KEY (shard, sequence)', part);
        PERFORM ledger.make_append_only(part::regclass);
        EXECUTE format('ALTER TABLE ledger.quarantine ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
            part, month, next_month);
    END IF;
END $$;
