-- The leases: which process may write a shard, and how far it has got. The rows of these tables change.

-- One row for each shard. Its epoch is the fence, and its offsets say which records have been consumed.
CREATE TABLE ledger.shards (
    shard smallint PRIMARY KEY,
    epoch bigint NOT NULL DEFAULT 0,
    owner text,
    owner_pid integer,                      -- the owner's database session; once it has ended, the owner has ended
    position bigint NOT NULL DEFAULT 0,
    ledger_time timestamptz NOT NULL DEFAULT '1970-01-01Z',
    frontier bytea NOT NULL DEFAULT '',     -- RFC 6962 compact range of the entries 1 … position
    incarnation text,                       -- the Kafka cluster whose offsets these are
    spend_offset bigint NOT NULL DEFAULT 0,
    command_offset bigint NOT NULL DEFAULT 0,
    outcome_sequence bigint NOT NULL DEFAULT 0,
    quarantine_sequence bigint NOT NULL DEFAULT 0,
    released_at timestamptz,                -- null: it has an owner, or never had one
    CONSTRAINT shards_bounds CHECK (
        shard >= 0 AND epoch >= 0 AND position >= 0 AND spend_offset >= 0 AND command_offset >= 0
        AND outcome_sequence >= 0 AND quarantine_sequence >= 0),
    CONSTRAINT shards_times CHECK (
        ledger_time >= '1970-01-01Z' AND ledger_time < '3000-01-01Z'
        AND released_at >= '1970-01-01Z' AND released_at < '3000-01-01Z'),
    CONSTRAINT shards_sizes CHECK (
        octet_length(frontier) <= 4096 AND octet_length(owner) <= 1024 AND octet_length(incarnation) <= 1024)
);

-- A lease never goes back in its epoch, position, time or sequences, and never changes its shard. Offsets may go back when
-- a topic is replaced, because records that are read again are not charged twice. An owner that claims a shard raises its
-- epoch by one: after the largest epoch no process could claim the shard any more.
CREATE FUNCTION ledger.refuse_to_go_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the lease of shard % never goes back, and its epoch rises by one at a time', OLD.shard
        USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER only_onward BEFORE UPDATE ON ledger.shards FOR EACH ROW
    WHEN (NEW.shard <> OLD.shard OR NEW.epoch < OLD.epoch OR NEW.epoch - 1 > OLD.epoch OR NEW.position < OLD.position
          OR NEW.ledger_time < OLD.ledger_time OR NEW.outcome_sequence < OLD.outcome_sequence
          OR NEW.quarantine_sequence < OLD.quarantine_sequence)
    EXECUTE FUNCTION ledger.refuse_to_go_back();
ALTER TABLE ledger.shards ENABLE ALWAYS TRIGGER only_onward;

-- The allocation processes that are alive and share the shards. Each one increments a row of its own, which no batch
-- locks, so that a process does not look dead while one of its batches takes long.
CREATE TABLE ledger.allocators (
    owner text PRIMARY KEY,
    renewed_at timestamptz NOT NULL,
    beat bigint NOT NULL DEFAULT 0,
    CONSTRAINT allocators_times CHECK (renewed_at >= '1970-01-01Z' AND renewed_at < '3000-01-01Z'),
    CONSTRAINT allocators_sizes CHECK (octet_length(owner) <= 1024)
);

-- The state that the writer of each shard reports, about once a second. The API's /readyz shows it, and no process decides
-- anything by it. A row with an old `reported_at` means that no process writes the shard. `waiting_since` says since
-- when the oldest waiting record has waited; null if no record waits.
CREATE TABLE ledger.shard_states (
    shard smallint PRIMARY KEY,
    owner text NOT NULL,
    state text NOT NULL,                    -- loading, writing, waiting, stopped
    detail text NOT NULL,
    waiting_records bigint NOT NULL,
    waiting_since timestamptz,
    since timestamptz NOT NULL,             -- when the state began
    reported_at timestamptz NOT NULL,
    CONSTRAINT shard_states_times CHECK (
        waiting_since >= '1970-01-01Z' AND waiting_since < '3000-01-01Z'
        AND since >= '1970-01-01Z' AND since < '3000-01-01Z'
        AND reported_at >= '1970-01-01Z' AND reported_at < '3000-01-01Z'),
    CONSTRAINT shard_states_sizes CHECK (
        octet_length(owner) <= 1024 AND octet_length(state) <= 64 AND octet_length(detail) <= 8000)
);

-- A cache: the state of a shard's rules at a position. Without it a process decides the ledger again from its beginning.
CREATE TABLE ledger.snapshots (
    shard smallint PRIMARY KEY,
    position bigint NOT NULL,
    format integer NOT NULL,
    state bytea NOT NULL,
    CONSTRAINT snapshots_bounds CHECK (position >= 0),
    CONSTRAINT snapshots_sizes CHECK (octet_length(state) <= 134217728)
);

-- Returns the time that is this many microseconds after the Unix epoch.
CREATE FUNCTION ledger.moment(us bigint) RETURNS timestamptz LANGUAGE sql IMMUTABLE
    RETURN timestamptz '1970-01-01Z' + us * interval '1 microsecond';

-- The fence is the first statement of a batch. A process that lost the shard finds another epoch and writes nothing.
CREATE FUNCTION ledger.move_lease(
    its_shard smallint, its_epoch bigint, from_position bigint, from_spend_offset bigint, from_command_offset bigint,
    to_position bigint, to_time bigint, to_frontier bytea, to_spend_offset bigint, to_command_offset bigint,
    to_outcome_sequence bigint, to_quarantine_sequence bigint, to_incarnation text
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE ledger.shards SET position = to_position, ledger_time = ledger.moment(to_time), frontier = to_frontier,
        spend_offset = to_spend_offset, command_offset = to_command_offset, outcome_sequence = to_outcome_sequence,
        quarantine_sequence = to_quarantine_sequence, incarnation = to_incarnation
    WHERE shard = its_shard AND epoch = its_epoch AND position = from_position
        AND spend_offset = from_spend_offset AND command_offset = from_command_offset;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'shard % is owned by another process: epoch % has passed', its_shard, its_epoch
            USING ERRCODE = 'DD001';
    END IF;
END $$;

-- Ends the sessions of an owner that no longer renews its row, because a stopped process may hold locks.
-- It runs as the schema's owner, but only ends sessions of the caller's login, because any login may give its session the
-- application name of a writer.
CREATE FUNCTION ledger.end_sessions(owner text) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND usename = session_user AND pid <> pg_backend_pid()
        AND application_name LIKE 'drawdown allocation %' AND right(application_name, 8) = right(owner, 8)
$$;

-- Creates the missing shards: partitions of the entries with unique positions and unique sources.
CREATE FUNCTION ledger.create_shards(shards integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    part text;
BEGIN
    FOR n IN 0 .. shards - 1 LOOP
        CONTINUE WHEN EXISTS (SELECT FROM ledger.shards WHERE shard = n);
        part := format('ledger.entries_%s', n);
        EXECUTE format('CREATE TABLE %s PARTITION OF ledger.entries FOR VALUES IN (%s)', part, n);
        EXECUTE format('ALTER TABLE %s ADD PRIMARY KEY (position)', part);
        -- This index enforces that each event is charged exactly once. Only spends and reversals have a day.
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
