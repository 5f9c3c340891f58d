-- Quarantine is kept in parts, one a month, so that what is old can be dropped. A replay names the record that it is of
-- instead of carrying its bytes, on its way back as well as where it fails again: replays multiply nothing.

ALTER TABLE ledger.quarantine RENAME TO quarantine_in_one;
-- Of a record that is not kept whole: how many bytes it had, and their SHA-256.
ALTER TABLE ledger.quarantine_in_one
    ADD COLUMN IF NOT EXISTS raw_bytes bigint, ADD COLUMN IF NOT EXISTS raw_sha256 bytea;
ALTER TABLE ledger.quarantine_replays DROP CONSTRAINT quarantine_replays_shard_sequence_fkey;
DROP INDEX ledger.quarantine_reason;

CREATE TABLE ledger.quarantine (
    LIKE ledger.quarantine_in_one INCLUDING CONSTRAINTS,
    replay_shard smallint,                  -- a replay that failed: of which record, the first one. Its bytes are there
    replay_sequence bigint,
    CHECK ((replay_shard IS NULL) = (replay_sequence IS NULL))
) PARTITION BY RANGE (recorded_at);
CREATE INDEX quarantine_reason ON ledger.quarantine (reason, shard, sequence);
CREATE INDEX quarantine_business_center ON ledger.quarantine (business_center_id, shard, sequence);
CREATE INDEX quarantine_replay_of ON ledger.quarantine (replay_shard, replay_sequence) WHERE replay_shard IS NOT NULL;
SELECT ledger.make_append_only('ledger.quarantine');

-- Makes the part of a moment's month (UTC) where there is none yet. Attaching waits for no reader and no writer, so a
-- batch may do it. Parts are read and written through their table only. Whoever has the writer's login could ask for any
-- month, so there is an end to them: fifty years.
CREATE FUNCTION ledger.make_quarantine_part(moment timestamptz) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    month timestamptz := date_trunc('month', moment, 'UTC');
    next_month timestamptz := (month AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC';
    part text := 'ledger.quarantine_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM');
BEGIN
    IF to_regclass(part) IS NULL THEN
        LOCK TABLE ledger.quarantine IN SHARE UPDATE EXCLUSIVE MODE;
    END IF;
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

SELECT ledger.make_quarantine_part(clock_timestamp());
SELECT ledger.make_quarantine_part(month)
FROM (SELECT DISTINCT date_trunc('month', recorded_at, 'UTC') AS month FROM ledger.quarantine_in_one) AS months;
INSERT INTO ledger.quarantine SELECT *, NULL, NULL FROM ledger.quarantine_in_one ORDER BY shard, sequence;
DROP TABLE ledger.quarantine_in_one;

-- What is replayed waits here by the name of its record; `replay_bytes` is how many it has.
ALTER TABLE ledger.forwarded
    ADD COLUMN replay_shard smallint, ADD COLUMN replay_sequence bigint, ADD COLUMN replay_bytes bigint NOT NULL DEFAULT 0;

-- Forwarded records with their bytes, wherever these are.
CREATE VIEW ledger.waiting_records AS
    SELECT f.shard, f.id, f.topic, f.partition, f."offset", coalesce(f.key, q.key) AS key, coalesce(f.raw, q.raw) AS raw,
        coalesce(f.headers, q.headers) AS headers, f.replay_shard, f.replay_sequence
    FROM ledger.forwarded f
        LEFT JOIN ledger.quarantine q ON q.shard = f.replay_shard AND q.sequence = f.replay_sequence;

-- How many wait for each shard, and how many bytes of them were replayed.
CREATE VIEW ledger.forwarded_waiting AS
    SELECT shard, count(*) AS records, sum(replay_bytes) AS replay_bytes FROM ledger.forwarded GROUP BY shard;

-- Hands records back to the shards `targets`, and answers which of those asked for. Left out is what waits already, and
-- what was replayed and has not failed since: of a record and its failed replays, only the newest can be replayed. What is
-- not kept whole never is: its beginning could pass for a record of its own.
DROP FUNCTION ledger.replay_quarantined;
CREATE FUNCTION ledger.replay_quarantined(
    shards smallint[], sequences bigint[], targets smallint[], replayed_at timestamptz
) RETURNS TABLE (shard smallint, sequence bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    crowded smallint;
BEGIN
    -- One after the other: two who ask for the same record would both find it free.
    LOCK TABLE ledger.quarantine_replays IN SHARE ROW EXCLUSIVE MODE;
    SELECT target INTO crowded FROM (SELECT DISTINCT unnest(targets) AS target) AS t
    WHERE (SELECT count(*) >= 100000 OR sum(replay_bytes) >= 256 * 1024 * 1024
           FROM ledger.forwarded f WHERE f.shard = target AND replay_shard IS NOT NULL);
    IF FOUND THEN
        RAISE EXCEPTION 'too many replayed records wait for shard %', crowded USING ERRCODE = 'DD002';
    END IF;
    RETURN QUERY WITH asked AS (
        SELECT q.shard, q.sequence, target, coalesce(q.replay_shard, q.shard) AS first_shard,
            coalesce(q.replay_sequence, q.sequence) AS first_sequence
        FROM unnest(shards, sequences, targets) AS w (shard, sequence, target)
            JOIN ledger.quarantine q ON q.shard = w.shard AND q.sequence = w.sequence
    ), standing AS (
        SELECT DISTINCT ON (first_shard, first_sequence) a.*, coalesce(f.shard, first_shard) AS newest_shard,
            coalesce(f.sequence, first_sequence) AS newest_sequence
        FROM asked a LEFT JOIN LATERAL (
            SELECT f.shard, f.sequence FROM ledger.quarantine f
            WHERE f.replay_shard = first_shard AND f.replay_sequence = first_sequence
            ORDER BY f.recorded_at DESC, f.sequence DESC LIMIT 1) AS f ON true
        ORDER BY first_shard, first_sequence
    ), free AS (
        SELECT * FROM standing WHERE NOT EXISTS (
            SELECT FROM ledger.quarantine_replays r WHERE r.shard = newest_shard AND r.sequence = newest_sequence)
        AND EXISTS (SELECT FROM ledger.quarantine q
            WHERE q.shard = first_shard AND q.sequence = first_sequence AND q.raw_bytes IS NULL)
    ), noted AS (
        INSERT INTO ledger.quarantine_replays (shard, sequence, replayed_at)
        SELECT first_shard, first_sequence, replayed_at FROM free
        UNION SELECT newest_shard, newest_sequence, replayed_at FROM free
    ), handed AS (
        INSERT INTO ledger.forwarded (shard, topic, partition, "offset", replay_shard, replay_sequence, replay_bytes)
        SELECT target, q.topic, q.partition, q."offset", first_shard, first_sequence,
            coalesce(octet_length(q.key), 0) + coalesce(octet_length(q.raw), 0) + coalesce(octet_length(q.headers::text), 0)
        FROM free JOIN ledger.quarantine q ON q.shard = first_shard AND q.sequence = first_sequence
        ORDER BY first_shard, first_sequence
    )
    SELECT free.shard, free.sequence FROM free;
END $$;

REVOKE ALL ON FUNCTION ledger.replay_quarantined, ledger.make_quarantine_part FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger.replay_quarantined TO drawdown_api;
GRANT EXECUTE ON FUNCTION ledger.make_quarantine_part TO drawdown_allocation;
GRANT INSERT ON ledger.quarantine TO drawdown_allocation;
GRANT SELECT ON ledger.waiting_records TO drawdown_allocation;
GRANT SELECT ON ledger.forwarded_waiting TO drawdown_api;
GRANT SELECT ON ledger.quarantine TO drawdown_api, drawdown_auditor;
