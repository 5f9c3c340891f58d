-- The decisions: entries, batches and answers, and what they were decided from. All tables of this file are append-only.
--
-- Every table bounds its rows, because its roles could otherwise write anything that PostgreSQL can store:
-- * `…_bounds`: positions and sequences begin at 1, offsets and parts at 0. A process that reads from the beginning would
--   never see a row below that. Such a row could keep a real spend out, because a source may be in the ledger only once.
-- * `…_times`: PostgreSQL stores infinity, years before Christ and the year 294276, which Python cannot read. Ledger time
--   begins in 1970 and ends before 3000. The times and days of spends may lie somewhat outside.
-- * `…_sizes`: a row that is larger than the services ever write would crash each process that reads it. Ids have at most
--   64 characters, names of releases and policies a few dozen. An entry has at most 65,535 bytes (docs/ledger.md). A
--   command as it came has at most 64 KiB, and each of its characters may take six bytes as JSON.

-- An entry: the effect of a spend, reversal, command or timer on one pocket or entity.
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
    details json,                           -- canonical JSON, kept as written
    CONSTRAINT entries_bounds CHECK (position > 0 AND part >= 0),
    CONSTRAINT entries_times CHECK (
        occurred_at >= '1960-01-01Z' AND occurred_at < '3001-01-01Z'
        AND recorded_at >= '1970-01-01Z' AND recorded_at < '3000-01-01Z'
        AND day >= '1960-01-01' AND day < '3001-01-01' AND period >= '1960-01-01' AND period < '3001-01-01'),
    CONSTRAINT entries_sizes CHECK (
        octet_length(details::text) <= 65536 AND octet_length(kind) <= 256 AND octet_length(holder) <= 256
        AND octet_length(pocket) <= 256 AND octet_length(grant_id) <= 256 AND octet_length(business_center_id) <= 256
        AND octet_length(ad_account_id) <= 256 AND octet_length(campaign_id) <= 256 AND octet_length(cause) <= 256)
) PARTITION BY LIST (shard);
SELECT ledger.make_append_only('ledger.entries');

-- One row for each batch that wrote entries.
CREATE TABLE ledger.batches (
    shard smallint NOT NULL,
    first_position bigint NOT NULL,
    last_position bigint NOT NULL,          -- also the size of the Merkle tree after the batch
    recorded_at timestamptz NOT NULL,
    policy_version text NOT NULL,
    root bytea NOT NULL,                    -- RFC 6962 root over the entries 1 … last_position of the shard
    epoch bigint NOT NULL,                  -- the lease that wrote it
    spend_offset bigint NOT NULL,           -- the next offsets of spend.events and finance.commands to read
    command_offset bigint NOT NULL,
    rules_version integer NOT NULL,         -- the version of the rules, and the release of the time zones, that decided it
    zones_release text NOT NULL,
    PRIMARY KEY (shard, last_position),
    CONSTRAINT batches_bounds CHECK (
        first_position > 0 AND last_position >= first_position AND epoch > 0 AND spend_offset >= 0
        AND command_offset >= 0 AND rules_version > 0 AND octet_length(root) = 32),
    CONSTRAINT batches_times CHECK (recorded_at >= '1970-01-01Z' AND recorded_at < '3000-01-01Z'),
    CONSTRAINT batches_sizes CHECK (
        octet_length(root) = 32 AND octet_length(policy_version) <= 1024 AND octet_length(zones_release) <= 256)
);
-- Finds the position that corresponds to a time. Ledger time never goes back within a shard.
CREATE INDEX batches_by_time ON ledger.batches (shard, recorded_at, last_position);
SELECT ledger.make_append_only('ledger.batches');

-- Every answer to a command, repeated answers included, in the order in which they are published.
CREATE TABLE ledger.outcomes (
    shard smallint NOT NULL,
    sequence bigint NOT NULL,
    command_id uuid NOT NULL,
    first boolean NOT NULL,                 -- true: the decision; false: a repetition of it, or a conflict with it
    business_center_id text NOT NULL,
    type text NOT NULL,
    content json NOT NULL,                  -- the command as it came
    status text NOT NULL,
    code text,
    message text NOT NULL,
    first_position bigint,                  -- accepted: its entries are first_position … position
    position bigint NOT NULL,
    recorded_at timestamptz NOT NULL,
    rules_version integer NOT NULL,         -- as in batches, because a batch that only refused commands has no row there
    zones_release text NOT NULL,
    via text CHECK (via IN ('api', 'topic')), -- the way by which the command came
    policy_version text,                    -- the policy that decided it; it may restrict commands of the topic
    PRIMARY KEY (shard, sequence),
    CONSTRAINT outcomes_bounds CHECK (
        sequence > 0 AND position >= 0 AND first_position BETWEEN 1 AND position AND rules_version > 0),
    CONSTRAINT outcomes_times CHECK (recorded_at >= '1970-01-01Z' AND recorded_at < '3000-01-01Z'),
    CONSTRAINT outcomes_sizes CHECK (
        octet_length(content::text) <= 1048576 AND octet_length(message) <= 65536 AND octet_length(type) <= 256
        AND octet_length(business_center_id) <= 256 AND octet_length(status) <= 256 AND octet_length(code) <= 256
        AND octet_length(zones_release) <= 256 AND octet_length(policy_version) <= 1024 AND octet_length(via) <= 256)
);
CREATE UNIQUE INDEX outcomes_decision ON ledger.outcomes (command_id, shard) WHERE first;
CREATE INDEX outcomes_command ON ledger.outcomes (command_id);
SELECT ledger.make_append_only('ledger.outcomes');

-- The waterfall policies that batches name. The content recorded for a version has that version.
CREATE TABLE ledger.policies (
    version text PRIMARY KEY,
    content json NOT NULL,
    CONSTRAINT policies_sizes CHECK (octet_length(content::text) <= 65536 AND octet_length(version) <= 1024),
    CONSTRAINT policies_versions CHECK ((json_typeof(content) = 'object' AND content ->> 'version' = version) IS TRUE)
);
SELECT ledger.make_append_only('ledger.policies');

-- The time zones of the releases that batches name: TZif files (RFC 9636), each recorded by the first batch that uses it
-- and never replaced. A zone has at most four kilobytes, and a release has about six hundred zones.
CREATE TABLE ledger.time_zones (
    release text COLLATE "C",
    name text COLLATE "C",
    data bytea NOT NULL,
    PRIMARY KEY (release, name),
    CONSTRAINT time_zones_sizes CHECK (
        octet_length(data) <= 16384 AND octet_length(name) <= 256 AND octet_length(release) <= 256)
);
SELECT ledger.make_append_only('ledger.time_zones');

-- Bounds the zones of a release, because a process that loads a shard reads all zones of each release that it names.
CREATE FUNCTION ledger.refuse_many_zones() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM ledger.time_zones WHERE release IN (SELECT release FROM added)
               GROUP BY release HAVING count(*) > 2000) THEN
        RAISE EXCEPTION 'a release of time zones has no more than 2000' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER few_zones AFTER INSERT ON ledger.time_zones REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_many_zones();
ALTER TABLE ledger.time_zones ENABLE ALWAYS TRIGGER few_zones;

-- Makes ad account ids unique across the platform, because a shard knows only its own accounts.
CREATE TABLE ledger.ad_accounts (
    ad_account_id text PRIMARY KEY,
    shard smallint NOT NULL,
    business_center_id text NOT NULL,
    CONSTRAINT ad_accounts_sizes CHECK (
        octet_length(ad_account_id) <= 256 AND octet_length(business_center_id) <= 256)
);
SELECT ledger.make_append_only('ledger.ad_accounts');

-- Campaigns that left the memory of their shard's writer because no record had named them for a long time, each in its
-- state after the entries up to `position`. This is a cache: the state also follows from the entries, but slowly. For a
-- batch, the newest row before it holds. See docs/decisions/what-leaves-memory.md.
CREATE TABLE ledger.resting_campaigns (
    shard smallint NOT NULL,
    ad_account_id text COLLATE "C" NOT NULL,
    campaign_id text COLLATE "C" NOT NULL,
    position bigint NOT NULL CHECK (position > 0),
    state json NOT NULL,
    PRIMARY KEY (shard, ad_account_id, campaign_id, position),
    CONSTRAINT resting_campaigns_sizes CHECK (
        octet_length(ad_account_id) <= 256 AND octet_length(campaign_id) <= 256
        AND octet_length(state::text) <= 1048576)
);
CREATE INDEX resting_campaigns_position ON ledger.resting_campaigns (shard, position);  -- for the auditor
SELECT ledger.make_append_only('ledger.resting_campaigns');

-- What operators did to the ledger by hand, and why. Examples: a record was skipped, a month of quarantine was dropped.
CREATE TABLE ledger.operators_log (
    sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY CHECK (sequence > 0),
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    operator text NOT NULL,                 -- the login, and the person at the terminal as far as that is known
    action text NOT NULL,                   -- offsets_skipped, quarantine_dropped, …
    because text NOT NULL CHECK (because <> ''),
    details json NOT NULL,
    CONSTRAINT operators_log_times CHECK (recorded_at >= '1970-01-01Z' AND recorded_at < '3000-01-01Z')
);
SELECT ledger.make_append_only('ledger.operators_log');

-- Writes the note that a record was skipped. The writer's login may write no other note, and this one only about a shard
-- that exists, and in a form that people can read and audits can compare. The sizes are checked first, so that nothing
-- larger is parsed.
CREATE FUNCTION ledger.note_offset_skipped(person text, because text, details json) RETURNS bigint
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
        RAISE EXCEPTION 'a note of a skipped offset names the person, the reason (at most 300 characters each) and the record'
            USING ERRCODE = 'check_violation';
    END IF;
    IF NOT EXISTS (SELECT FROM ledger.shards WHERE shard = (details ->> 'shard')::integer) THEN
        RAISE EXCEPTION 'no note of a skipped offset: there is no shard %', details ->> 'shard'
            USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO ledger.operators_log (operator, action, because, details)
    VALUES (session_user || ', ' || person, 'offsets_skipped', because, details) RETURNING sequence INTO noted;
    RETURN noted;
END $$;
