-- Records that cannot be decided, and records on their way to the shard that decides them.

-- Quarantine has one partition for each month, so that old months can be dropped. A replay names its record instead of
-- carrying its bytes, both on its way back and if it fails again, so that replays do not multiply the data. If a record is
-- too large, or a batch cannot be read, quarantine keeps only the first bytes. Then raw_bytes and raw_sha256 are the size
-- and the SHA-256 of the whole value, or of the batch as Kafka has it.
--
-- The sizes are the largest that the writer writes: values of 64 KiB, records of 80 KiB, twelve bytes of JSON for each
-- character of a header's name, and a sentence of 2,000 characters.
CREATE TABLE ledger.quarantine (
    shard smallint NOT NULL,
    sequence bigint NOT NULL,
    reason text NOT NULL,
    detail text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    key bytea,
    raw bytea,                              -- null: a record without a value
    headers json,                           -- [[name, base64 value], …]
    business_center_id text,                -- if it could be read
    recorded_at timestamptz NOT NULL,
    raw_bytes bigint CHECK (raw_bytes >= 0), -- null: `raw` is complete
    raw_sha256 bytea CHECK (octet_length(raw_sha256) = 32),
    replay_shard smallint,                  -- of a failed replay: the first record, which holds the bytes
    replay_sequence bigint,
    CHECK ((replay_shard IS NULL) = (replay_sequence IS NULL)),
    CONSTRAINT quarantine_cut CHECK ((raw_bytes IS NULL) = (raw_sha256 IS NULL)),
    -- A record of another topic could not be replayed, and would keep those behind it from being replayed by reason.
    CONSTRAINT quarantine_bounds CHECK (
        sequence > 0 AND partition >= 0 AND "offset" >= 0 AND topic IN ('spend.events', 'finance.commands')),
    CONSTRAINT quarantine_times CHECK (recorded_at >= '1970-01-01Z' AND recorded_at < '3000-01-01Z'),
    CONSTRAINT quarantine_sizes CHECK (
        octet_length(raw) <= 65536 AND octet_length(key) <= 81920 AND octet_length(headers::text) <= 1048576
        AND octet_length(detail) <= 8000 AND octet_length(reason) <= 64 AND octet_length(topic) <= 249
        AND octet_length(business_center_id) <= 256)
) PARTITION BY RANGE (recorded_at);
CREATE INDEX quarantine_reason ON ledger.quarantine (reason, shard, sequence);
CREATE INDEX quarantine_business_center ON ledger.quarantine (business_center_id, shard, sequence);
CREATE INDEX quarantine_replay_of ON ledger.quarantine (replay_shard, replay_sequence) WHERE replay_shard IS NOT NULL;
SELECT ledger.make_append_only('ledger.quarantine');

-- Creates the partition of a table for a month, and attaches it. Neither readers nor writers of the table wait for this.
CREATE FUNCTION ledger.make_month(of text, month timestamptz) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    part text := 'ledger.' || of || to_char(month AT TIME ZONE 'UTC', '_YYYY_MM');
BEGIN
    EXECUTE format('CREATE TABLE %s (LIKE ledger.%I INCLUDING CONSTRAINTS)', part, of);
    PERFORM ledger.make_append_only(part::regclass);
    EXECUTE format('ALTER TABLE ledger.%I ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
        of, part, month, (month AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC');
END $$;

-- Creates the partition for the month (UTC) of a time, if it is missing. Attaching it waits for no reader and no writer,
-- so a batch may do it. Partitions are only read and written through their table.
--
-- The writer's login could ask for any month, so their number is bounded: 600 partitions, from 1970 to two years after
-- now or after the latest time of a shard. A batch moves its shard's time first, so the month of that time is never
-- refused, even if all other partitions exist already.
--
-- A session may see another transaction's partition a moment before it learns that the partition is attached. Until then
-- it cannot insert rows of that month. The session that created the partition holds the lock until all sessions know, so
-- this function waits for the lock even if the partition seems to exist. Each writer calls it once a month.
CREATE FUNCTION ledger.make_quarantine_part(moment timestamptz) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    month timestamptz := date_trunc('month', moment, 'UTC');
    part text := 'ledger.quarantine_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM');
BEGIN
    IF (month >= '1970-01-01Z' AND month <= greatest(clock_timestamp(), (SELECT max(ledger_time) FROM ledger.shards))
            + interval '24 months') IS NOT TRUE THEN
        RAISE EXCEPTION 'quarantine gets no partition for %: that is before 1970, or more than two years in the future', moment
            USING ERRCODE = 'check_violation';
    END IF;
    LOCK TABLE ledger.quarantine IN SHARE UPDATE EXCLUSIVE MODE;
    IF to_regclass(part) IS NULL THEN
        IF (SELECT count(*) FROM pg_inherits WHERE inhparent = 'ledger.quarantine'::regclass) >= 600
            AND NOT EXISTS (SELECT FROM ledger.shards WHERE date_trunc('month', ledger_time, 'UTC') = month) THEN
            RAISE EXCEPTION 'quarantine has 600 partitions, which is the limit: drop some before % begins', month;
        END IF;
        PERFORM ledger.make_month('quarantine', month);
        EXECUTE format('ALTER TABLE %s ADD PRIMARY KEY (shard, sequence)', part);
    END IF;
END $$;
SELECT ledger.make_quarantine_part(clock_timestamp());

-- The records that were sent back to be decided again. A replay of a failed replay is noted for both it and the first
-- record. A note lies in the month of its record, and is dropped with that month.
CREATE TABLE ledger.quarantine_replays (
    shard smallint NOT NULL,
    sequence bigint NOT NULL,
    recorded_at timestamptz NOT NULL,       -- when the record was quarantined
    replayed_at timestamptz NOT NULL,
    CONSTRAINT quarantine_replays_bounds CHECK (sequence > 0),
    CONSTRAINT quarantine_replays_times CHECK (
        recorded_at >= '1970-01-01Z' AND recorded_at < '3000-01-01Z'
        AND replayed_at >= '1970-01-01Z' AND replayed_at < '3000-01-01Z')
) PARTITION BY RANGE (recorded_at);
CREATE INDEX quarantine_replays_of ON ledger.quarantine_replays (shard, sequence);
SELECT ledger.make_append_only('ledger.quarantine_replays');

-- Records that wait for their shard: they came on another partition, or are replayed from quarantine. A replay only names
-- its record, and replay_bytes is the size of that record. The constraints let in only topics that the writer reads, and
-- sizes that it forwards.
CREATE TABLE ledger.forwarded (
    shard smallint NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    key bytea,
    raw bytea,
    headers json,
    replay_shard smallint,
    replay_sequence bigint,
    replay_bytes bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (shard, id),
    CONSTRAINT forwarded_bounds CHECK (partition >= 0 AND "offset" >= 0),
    CONSTRAINT forwarded_records CHECK (
        topic IN ('spend.events', 'finance.commands') AND (replay_shard IS NULL) = (replay_sequence IS NULL)
        AND replay_bytes >= 0),
    CONSTRAINT forwarded_sizes CHECK (
        octet_length(raw) <= 65536 AND octet_length(key) <= 81920 AND octet_length(headers::text) <= 1048576)
);

-- Forwarded records with their bytes. The bytes of replayed records are in quarantine.
CREATE VIEW ledger.waiting_records AS
    SELECT f.shard, f.id, f.topic, f.partition, f."offset", coalesce(f.key, q.key) AS key, coalesce(f.raw, q.raw) AS raw,
        coalesce(f.headers, q.headers) AS headers, f.replay_shard, f.replay_sequence
    FROM ledger.forwarded f
        LEFT JOIN ledger.quarantine q ON q.shard = f.replay_shard AND q.sequence = f.replay_sequence;

-- The number of records that wait for each shard, and how many bytes of them are replays.
CREATE VIEW ledger.forwarded_waiting AS
    SELECT shard, count(*) AS records, sum(replay_bytes) AS replay_bytes FROM ledger.forwarded GROUP BY shard;

-- Sends records back to the shards `targets`, and returns which ones. It leaves out records that already wait, and those
-- that were replayed and have not failed since: of a record and its failed replays, only the newest can be replayed. It
-- never replays an incomplete record, because its first bytes could be a valid record. A record that was replayed
-- `most_replays` times (null: without a bound) and failed each time is returned as such, and not sent. Sequential scans
-- are off, because a month that was empty when a session planned its statements may be large by now.
CREATE FUNCTION ledger.replay_quarantined(
    shards smallint[], sequences bigint[], targets smallint[], replayed_at timestamptz, most_replays integer
) RETURNS TABLE (shard smallint, sequence bigint, failed_too_often boolean)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    crowded smallint;
    found_shards smallint[];
    found_sequences bigint[];
    found_too_often boolean[];
    notes ledger.quarantine_replays[];
BEGIN
    -- In this order, like everybody else who locks both: reads of the two, and a month being dropped.
    LOCK TABLE ONLY ledger.quarantine IN ACCESS SHARE MODE;
    -- Calls take turns, because two calls for the same record would both find it free, or count one replay too few.
    LOCK TABLE ONLY ledger.quarantine_replays IN SHARE ROW EXCLUSIVE MODE;
    SELECT target INTO crowded FROM (SELECT DISTINCT unnest(targets) AS target) AS t
    WHERE (SELECT count(*) >= 100000 OR sum(replay_bytes) >= 256 * 1024 * 1024
           FROM ledger.forwarded f WHERE f.shard = target AND replay_shard IS NOT NULL);
    IF FOUND THEN
        RAISE EXCEPTION 'too many replayed records wait for shard %', crowded USING ERRCODE = 'DD002';
    END IF;
    WITH asked AS (
        -- LIMIT makes PostgreSQL look up each record in an index. A join may read all of quarantine instead.
        SELECT w.shard, w.sequence, target, o.shard AS first_shard, o.sequence AS first_sequence,
            o.recorded_at AS first_recorded_at
        FROM unnest(shards, sequences, targets) AS w (shard, sequence, target)
            CROSS JOIN LATERAL (SELECT q.replay_shard, q.replay_sequence FROM ledger.quarantine q
                WHERE q.shard = w.shard AND q.sequence = w.sequence LIMIT 1) AS q
            CROSS JOIN LATERAL (SELECT o.shard, o.sequence, o.recorded_at, o.raw_bytes FROM ledger.quarantine o
                WHERE o.shard = coalesce(q.replay_shard, w.shard)
                    AND o.sequence = coalesce(q.replay_sequence, w.sequence) LIMIT 1) AS o
        WHERE o.raw_bytes IS NULL
    ), standing AS (
        SELECT DISTINCT ON (first_shard, first_sequence) a.*, coalesce(f.shard, first_shard) AS newest_shard,
            coalesce(f.sequence, first_sequence) AS newest_sequence,
            coalesce(f.recorded_at, first_recorded_at) AS newest_recorded_at
        FROM asked a LEFT JOIN LATERAL (
            SELECT f.shard, f.sequence, f.recorded_at FROM ledger.quarantine f
            WHERE f.replay_shard = first_shard AND f.replay_sequence = first_sequence
            ORDER BY f.recorded_at DESC, f.sequence DESC LIMIT 1) AS f ON true
        ORDER BY first_shard, first_sequence
    ), failed AS (
        SELECT *, most_replays <= (SELECT count(*) FROM (
            -- Every replay notes the first record once, so its notes are the replays of the record.
            SELECT FROM ledger.quarantine_replays r WHERE r.shard = first_shard AND r.sequence = first_sequence
                AND r.recorded_at = first_recorded_at LIMIT most_replays) AS r) IS TRUE AS too_often
        FROM standing WHERE (
            SELECT true FROM ledger.quarantine_replays r WHERE r.shard = newest_shard AND r.sequence = newest_sequence
                AND r.recorded_at = newest_recorded_at LIMIT 1) IS NULL
    ), free AS (
        SELECT * FROM failed WHERE NOT too_often
    ), handed AS (
        INSERT INTO ledger.forwarded (shard, topic, partition, "offset", replay_shard, replay_sequence, replay_bytes)
        SELECT target, q.topic, q.partition, q."offset", first_shard, first_sequence,
            coalesce(octet_length(q.key), 0) + coalesce(octet_length(q.raw), 0) + coalesce(octet_length(q.headers::text), 0)
        FROM free JOIN ledger.quarantine q ON q.shard = first_shard AND q.sequence = first_sequence
        ORDER BY first_shard, first_sequence
    )
    SELECT array_agg(failed.shard), array_agg(failed.sequence), array_agg(too_often), (
        SELECT array_agg(note) FROM (
            SELECT (first_shard, first_sequence, first_recorded_at, replayed_at)::ledger.quarantine_replays FROM free
            UNION
            SELECT (newest_shard, newest_sequence, newest_recorded_at, replayed_at)::ledger.quarantine_replays FROM free
        ) AS n (note))
    INTO found_shards, found_sequences, found_too_often, notes FROM failed;
    PERFORM ledger.make_month('quarantine_replays', month)
    FROM (SELECT DISTINCT date_trunc('month', recorded_at, 'UTC') AS month FROM unnest(notes)) AS m
    WHERE to_regclass('ledger.quarantine_replays_' || to_char(month AT TIME ZONE 'UTC', 'YYYY_MM')) IS NULL;
    INSERT INTO ledger.quarantine_replays SELECT * FROM unnest(notes);
    RETURN QUERY SELECT * FROM unnest(found_shards, found_sequences, found_too_often);
END $$;
