-- The ledger: what was decided, by whom, and from what. Only ever appended to.

CREATE SCHEMA ledger;

-- One entry: what a spend, reversal, command or timer did to one pocket or entity.
-- docs/ledger.md describes every kind, its fields and the canonical bytes.
CREATE TABLE ledger.entries (
    shard smallint NOT NULL,
    position bigint NOT NULL,
    amount bigint,                          -- micros, signed
    occurred_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL,       -- ledger time of the batch
    source_event_id uuid,                   -- event id or command id; null for a timer
    part integer NOT NULL,                  -- 0, 1, 2 … among the entries of one source
    day date,                               -- spends and reversals: the spend's day in the account's time zone
    period date,                            -- first day of the account's budget period that counted it
    kind text NOT NULL,
    holder text,
    pocket text,
    grant_id text,
    business_center_id text NOT NULL,
    ad_account_id text,
    campaign_id text,
    cause text,
    reverses uuid,                          -- reversals: the event id of the spend
    details json                            -- canonical JSON, kept as written
) PARTITION BY LIST (shard);

-- One row a batch that wrote entries.
CREATE TABLE ledger.batches (
    shard smallint NOT NULL,
    first_position bigint NOT NULL,
    last_position bigint NOT NULL,          -- also the size of the Merkle tree after the batch
    recorded_at timestamptz NOT NULL,
    policy_version text NOT NULL,
    root bytea NOT NULL,                    -- RFC 6962 root over the entries 1 … last_position of the shard
    epoch bigint NOT NULL,                  -- the lease that wrote it
    spend_offset bigint NOT NULL,           -- offsets of spend.events and finance.commands consumed up to here
    command_offset bigint NOT NULL,
    PRIMARY KEY (shard, last_position)
);

-- Every answer to a command, also the repeated ones, in the order in which they are published.
CREATE TABLE ledger.outcomes (
    shard smallint NOT NULL,
    sequence bigint NOT NULL,
    command_id uuid NOT NULL,
    first boolean NOT NULL,                 -- the decision; false: a repetition of it, or a conflict with it
    business_center_id text NOT NULL,
    type text NOT NULL,
    content json NOT NULL,                  -- the command as it came
    status text NOT NULL,
    code text,
    message text NOT NULL,
    first_position bigint,                  -- accepted: its entries are first_position … position
    position bigint NOT NULL,
    recorded_at timestamptz NOT NULL,
    PRIMARY KEY (shard, sequence)
);
CREATE UNIQUE INDEX outcomes_decision ON ledger.outcomes (command_id, shard) WHERE first;
CREATE INDEX outcomes_command ON ledger.outcomes (command_id);

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
    business_center_id text,                -- where it could be read
    recorded_at timestamptz NOT NULL,
    PRIMARY KEY (shard, sequence)
);
CREATE INDEX quarantine_reason ON ledger.quarantine (reason, shard, sequence);

CREATE TABLE ledger.quarantine_replays (
    shard smallint NOT NULL,
    sequence bigint NOT NULL,
    replayed_at timestamptz NOT NULL,
    FOREIGN KEY (shard, sequence) REFERENCES ledger.quarantine
);
CREATE INDEX quarantine_replays_of ON ledger.quarantine_replays (shard, sequence);

-- The waterfall policies that batches name.
CREATE TABLE ledger.policies (
    version text PRIMARY KEY,
    content json NOT NULL
);

-- Ad account ids are unique across the platform; a shard knows only its own.
CREATE TABLE ledger.ad_accounts (
    ad_account_id text PRIMARY KEY,
    shard smallint NOT NULL,
    business_center_id text NOT NULL
);

-- Append-only, for everyone, also in replication mode.
CREATE FUNCTION ledger.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only: % on %.% is refused', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE FUNCTION ledger.make_append_only(target regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %s
                    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change()', target);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER append_only', target);
END $$;

SELECT ledger.make_append_only(name::regclass) FROM unnest(ARRAY[
    'ledger.entries', 'ledger.batches', 'ledger.outcomes', 'ledger.quarantine', 'ledger.quarantine_replays',
    'ledger.policies', 'ledger.ad_accounts']) AS name;

-- What follows changes: who owns a shard, what waits for it, and what can be made again from the ledger.

-- The lease: one row a shard. Its epoch is the fence, its offsets say what has been consumed.
CREATE TABLE ledger.shards (
    shard smallint PRIMARY KEY,
    epoch bigint NOT NULL DEFAULT 0,
    owner text,
    owner_pid integer,                      -- the owner's database session: once it is gone, so is the owner
    renewed_at timestamptz,
    position bigint NOT NULL DEFAULT 0,
    ledger_time timestamptz NOT NULL DEFAULT '1970-01-01Z',
    frontier bytea NOT NULL DEFAULT '',     -- RFC 6962 compact range of the entries 1 … position
    incarnation text,                       -- the Kafka cluster whose offsets these are
    spend_offset bigint NOT NULL DEFAULT 0,
    command_offset bigint NOT NULL DEFAULT 0,
    outcome_sequence bigint NOT NULL DEFAULT 0,
    quarantine_sequence bigint NOT NULL DEFAULT 0
);

-- The allocation processes that are alive: between them the shards are shared out.
CREATE TABLE ledger.allocators (
    owner text PRIMARY KEY,
    renewed_at timestamptz NOT NULL
);

-- Records that wait for their shard: they came on another partition, or are replayed from quarantine.
CREATE TABLE ledger.forwarded (
    shard smallint NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    key bytea,
    raw bytea,
    headers json,
    PRIMARY KEY (shard, id)
);

-- A cache: the state of a shard's rules at a position. Without it the ledger is re-decided from its beginning.
CREATE TABLE ledger.snapshots (
    shard smallint PRIMARY KEY,
    position bigint NOT NULL,
    format integer NOT NULL,
    state bytea NOT NULL
);

-- How far each follower has got.
CREATE TABLE ledger.checkpoints (
    follower text NOT NULL,
    shard smallint NOT NULL,
    position bigint NOT NULL DEFAULT 0,
    recorded_at timestamptz,                -- ledger time of that position
    PRIMARY KEY (follower, shard)
);

-- The moment of a number of microseconds since the Unix epoch.
CREATE FUNCTION ledger.moment(us bigint) RETURNS timestamptz LANGUAGE sql IMMUTABLE
    RETURN timestamptz '1970-01-01Z' + us * interval '1 microsecond';

-- The fence: the first statement of a batch. Whoever lost the shard finds another epoch and writes nothing.
CREATE FUNCTION ledger.move_lease(
    its_shard smallint, its_epoch bigint, from_position bigint, from_spend_offset bigint, from_command_offset bigint,
    to_position bigint, to_time bigint, to_frontier bytea, to_spend_offset bigint, to_command_offset bigint,
    to_outcome_sequence bigint, to_quarantine_sequence bigint, to_incarnation text
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE ledger.shards SET position = to_position, ledger_time = ledger.moment(to_time), frontier = to_frontier,
        spend_offset = to_spend_offset, command_offset = to_command_offset, outcome_sequence = to_outcome_sequence,
        quarantine_sequence = to_quarantine_sequence, incarnation = to_incarnation, renewed_at = clock_timestamp()
    WHERE shard = its_shard AND epoch = its_epoch AND position = from_position
        AND spend_offset = from_spend_offset AND command_offset = from_command_offset;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'shard % is owned by another process: epoch % has passed', its_shard, its_epoch
            USING ERRCODE = 'DD001';
    END IF;
END $$;

-- The last statement of a batch with entries: its row, and who is to be woken once it is committed.
CREATE FUNCTION ledger.close_batch(
    its_shard smallint, first_position bigint, last_position bigint, its_time bigint, policy_version text, root bytea,
    epoch bigint, spend_offset bigint, command_offset bigint, changes_delivery boolean
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ledger.batches VALUES (its_shard, first_position, last_position, ledger.moment(its_time), policy_version,
        root, epoch, spend_offset, command_offset);
    PERFORM pg_notify('ledger', its_shard::text);
    IF changes_delivery THEN
        PERFORM pg_notify('delivery', its_shard::text);
    END IF;
END $$;

-- Ends what is left of an owner that does not renew: a stopped process may hold locks in an open transaction.
-- Runs as the schema's owner, for the sessions belong to whoever logged in.
CREATE FUNCTION ledger.end_sessions(owner text) RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND application_name LIKE 'drawdown allocation %' AND right(application_name, 8) = right(owner, 8)
$$;
REVOKE EXECUTE ON FUNCTION ledger.end_sessions FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger.end_sessions TO drawdown_allocation;

-- Partitions of the entries, one a shard. Positions have no gap; a source is in the ledger once.
CREATE FUNCTION ledger.create_shards(shards integer) RETURNS void LANGUAGE plpgsql AS $$
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
        PERFORM ledger.make_append_only(part::regclass);
        EXECUTE format('GRANT SELECT, INSERT ON %s TO drawdown_allocation', part);
        EXECUTE format('GRANT SELECT ON %s TO drawdown_follower, drawdown_api, drawdown_auditor', part);
        INSERT INTO ledger.shards (shard) VALUES (n);
    END LOOP;
END $$;

GRANT USAGE ON SCHEMA ledger TO drawdown_allocation, drawdown_follower, drawdown_api, drawdown_auditor;
GRANT SELECT ON ALL TABLES IN SCHEMA ledger TO drawdown_allocation, drawdown_follower, drawdown_api, drawdown_auditor;
GRANT INSERT ON ledger.entries, ledger.batches, ledger.outcomes, ledger.quarantine, ledger.policies,
    ledger.ad_accounts TO drawdown_allocation;
GRANT INSERT, UPDATE, DELETE ON ledger.allocators TO drawdown_allocation;
GRANT UPDATE ON ledger.shards TO drawdown_allocation;
GRANT INSERT, DELETE ON ledger.forwarded TO drawdown_allocation;
GRANT INSERT, UPDATE, DELETE ON ledger.snapshots TO drawdown_allocation;
GRANT INSERT, UPDATE ON ledger.checkpoints TO drawdown_follower, drawdown_allocation;
GRANT INSERT ON ledger.quarantine_replays, ledger.forwarded TO drawdown_api;
