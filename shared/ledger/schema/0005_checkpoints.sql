-- The position of each follower in each shard. A role that may move a checkpoint may also lock the table against its
-- readers. So each follower has a partition of its own, which its migration creates: it can only hold up itself and the
-- readers of its own checkpoints.
CREATE TABLE ledger.checkpoints (
    follower text NOT NULL,
    shard smallint NOT NULL CHECK (shard >= 0),
    position bigint NOT NULL DEFAULT 0 CHECK (position >= 0),
    recorded_at timestamptz,                -- ledger time of that position
    PRIMARY KEY (follower, shard),
    CONSTRAINT checkpoints_times CHECK (recorded_at >= '1970-01-01Z' AND recorded_at < '3000-01-01Z')
) PARTITION BY LIST (follower);

-- The writer itself publishes the outcomes. Its checkpoints count sequences of outcomes instead of positions.
CREATE TABLE ledger.checkpoints_outcomes PARTITION OF ledger.checkpoints FOR VALUES IN ('outcomes');

-- Refuses a checkpoint that is ahead of the ledger, because its follower would skip the next entries, and one of a shard
-- that does not exist.
CREATE FUNCTION ledger.refuse_to_run_ahead() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    last bigint;
BEGIN
    SELECT CASE NEW.follower WHEN 'outcomes' THEN outcome_sequence ELSE position END INTO last
    FROM ledger.shards WHERE shard = NEW.shard;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no shard % for a checkpoint of %', NEW.shard, NEW.follower
            USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.position > last THEN
        RAISE EXCEPTION 'the checkpoint of % in shard % would be ahead of the ledger', NEW.follower, NEW.shard
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER not_ahead BEFORE INSERT OR UPDATE ON ledger.checkpoints
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_to_run_ahead();
ALTER TABLE ledger.checkpoints ENABLE ALWAYS TRIGGER not_ahead;
