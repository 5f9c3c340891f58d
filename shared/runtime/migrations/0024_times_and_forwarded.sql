-- Times that every reader has. PostgreSQL knows infinity, years before Christ and the year 294276; Python knows none of
-- them, and whoever reads such a time fails at it. Ledger time begins at 1970 and ends before 3000, and so does every
-- clock's. When a spend occurred, and the days that count it, may lie a year and a month's beginning before that.
--
-- Whatever already lies out of bounds makes this migration fail, and nothing is changed: docs/runbook.md says what then.
DO $$
DECLARE
    own record;
BEGIN
    FOR own IN
        SELECT c.oid::regclass AS name, c.relname, string_agg(format(
            CASE WHEN a.atttypid = 'date'::regtype OR a.attname IN ('occurred_at', 'bucket', 'quarter')
                THEN '%1$I >= ''1960-01-01Z''::%2$s AND %1$I < ''3001-01-01Z''::%2$s'
                ELSE '%1$I >= ''1970-01-01Z''::%2$s AND %1$I < ''3000-01-01Z''::%2$s'
            END, a.attname, a.atttypid::regtype), ' AND ' ORDER BY a.attnum) AS bounds
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace::regnamespace::text IN ('ledger', 'balance', 'incentives', 'signals')
            AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
            AND a.atttypid IN ('timestamptz'::regtype, 'date'::regtype)
        GROUP BY c.oid, c.relname ORDER BY c.oid
    LOOP
        EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I CHECK (%s)', own.name, own.relname || '_times', own.bounds);
    END LOOP;
END $$;

-- What waits for a shard is a record of a topic that it reads, as it came or by the name of a quarantined one.
ALTER TABLE ledger.forwarded ADD CONSTRAINT forwarded_records CHECK (
    topic IN ('spend.events', 'finance.commands') AND (replay_shard IS NULL) = (replay_sequence IS NULL)
    AND replay_bytes >= 0);
-- The writer passes on values of at most 64 KiB and records of at most 80 KiB; a header's name may take twelve bytes of
-- JSON for each character. Rows that wait from before there were bounds may be larger: they are not looked at.
ALTER TABLE ledger.forwarded ADD CONSTRAINT forwarded_sizes CHECK (
    octet_length(raw) <= 65536 AND octet_length(key) <= 81920 AND octet_length(headers::text) <= 1048576) NOT VALID;

-- An owner that claims a shard moves its epoch by one. A far epoch would leave no next one to anybody.
CREATE OR REPLACE FUNCTION ledger.refuse_to_go_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the lease of shard % goes onward only, and by one epoch at a time', OLD.shard
        USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE OR REPLACE TRIGGER only_onward BEFORE UPDATE ON ledger.shards FOR EACH ROW
    WHEN (NEW.shard <> OLD.shard OR NEW.epoch < OLD.epoch OR NEW.epoch - 1 > OLD.epoch OR NEW.position < OLD.position
          OR NEW.ledger_time < OLD.ledger_time OR NEW.outcome_sequence < OLD.outcome_sequence
          OR NEW.quarantine_sequence < OLD.quarantine_sequence)
    EXECUTE FUNCTION ledger.refuse_to_go_back();
ALTER TABLE ledger.shards ENABLE ALWAYS TRIGGER only_onward;

-- As before, for the months from 1970 to two years from now, or from a shard's time where that is later. A batch moves its
-- shard's time first, so the month that it is in is never refused: whoever asked for others cannot have used them all up.
CREATE OR REPLACE FUNCTION ledger.make_quarantine_part(moment timestamptz) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    month timestamptz := date_trunc('month', moment, 'UTC');
    next_month timestamptz;
    part text := 'ledger.quarantine_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM');
BEGIN
    IF (month >= '1970-01-01Z' AND month <= greatest(clock_timestamp(), (SELECT max(ledger_time) FROM ledger.shards))
            + interval '24 months') IS NOT TRUE THEN
        RAISE EXCEPTION 'quarantine gets no part for %: that is before 1970, or years to come', moment
            USING ERRCODE = 'check_violation';
    END IF;
    next_month := (month AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC';
    LOCK TABLE ledger.quarantine IN SHARE UPDATE EXCLUSIVE MODE;
    IF to_regclass(part) IS NULL THEN
        IF (SELECT count(*) FROM pg_inherits WHERE inhparent = 'ledger.quarantine'::regclass) >= 600
            AND NOT EXISTS (SELECT FROM ledger.shards WHERE date_trunc('month', ledger_time, 'UTC') = month) THEN
            RAISE EXCEPTION 'quarantine has parts of 600 months: drop some before that of % begins', month;
        END IF;
        EXECUTE format('CREATE TABLE %s (LIKE ledger.quarantine INCLUDING CONSTRAINTS)', part);
        EXECUTE format('ALTER TABLE %s ADD PRIMARY KEY (shard, sequence)', part);
        PERFORM ledger.make_append_only(part::regclass);
        EXECUTE format('ALTER TABLE ledger.quarantine ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
            part, month, next_month);
    END IF;
END $$;

-- As before, for a note that a person can read and an audit can compare. Sizes first: what is larger is not looked at.
CREATE OR REPLACE FUNCTION ledger.note_offset_skipped(person text, because text, details json) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    noted bigint;
BEGIN
    IF (octet_length(person) <= 1200 AND octet_length(because) <= 1200 AND octet_length(details::text) <= 500
            AND char_length(person) <= 300 AND char_length(because) BETWEEN 1 AND 300
            AND strpos(details::text, E'\\') = 0 AND json_typeof(details) = 'object') IS NOT TRUE
        OR (json_typeof(details -> 'shard') = 'number' AND details ->> 'shard' ~ '^[0-9]{1,5}$'
            AND json_typeof(details -> 'offset') = 'number' AND details ->> 'offset' ~ '^[0-9]{1,19}$'
            AND json_typeof(details -> 'topic') = 'string'
            AND details ->> 'topic' IN ('spend.events', 'finance.commands')) IS NOT TRUE THEN
        RAISE EXCEPTION 'no note of a skipped offset: it says who and why in at most 300 characters each, and which'
            USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO ledger.operators_log (operator, action, because, details)
    VALUES (session_user || ', ' || person, 'offsets_skipped', because, details) RETURNING sequence INTO noted;
    RETURN noted;
END $$;
