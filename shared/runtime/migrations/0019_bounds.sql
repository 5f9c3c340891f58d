-- Positions and sequences begin at 1, offsets and parts at 0. A row below would be seen by nobody who reads from the
-- beginning, and could still keep a real spend out: a source may stand in the ledger once.
--
-- Whatever already lies out of bounds makes this migration fail, and nothing is changed: docs/runbook.md says what then.

ALTER TABLE ledger.entries ADD CONSTRAINT entries_bounds CHECK (position > 0 AND part >= 0);
ALTER TABLE ledger.batches ADD CONSTRAINT batches_bounds CHECK (
    first_position > 0 AND last_position >= first_position AND epoch > 0 AND spend_offset >= 0 AND command_offset >= 0
    AND rules_version > 0 AND octet_length(root) = 32);
ALTER TABLE ledger.outcomes ADD CONSTRAINT outcomes_bounds CHECK (
    sequence > 0 AND position >= 0 AND first_position BETWEEN 1 AND position AND rules_version > 0);
ALTER TABLE ledger.quarantine ADD CONSTRAINT quarantine_bounds CHECK (sequence > 0 AND partition >= 0 AND "offset" >= 0);
ALTER TABLE ledger.quarantine_replays ADD CONSTRAINT quarantine_replays_bounds CHECK (sequence > 0);
ALTER TABLE ledger.forwarded ADD CONSTRAINT forwarded_bounds CHECK (partition >= 0 AND "offset" >= 0);
ALTER TABLE ledger.snapshots ADD CONSTRAINT snapshots_bounds CHECK (position >= 0);
ALTER TABLE ledger.shards ADD CONSTRAINT shards_bounds CHECK (
    shard >= 0 AND epoch >= 0 AND position >= 0 AND spend_offset >= 0 AND command_offset >= 0 AND outcome_sequence >= 0
    AND quarantine_sequence >= 0);

-- What the lease says goes onward: its shard, epoch, position, time and sequences. Offsets may go back, in another topic;
-- to read records again charges nothing twice.
CREATE FUNCTION ledger.refuse_to_go_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the lease of shard % goes onward only', OLD.shard USING ERRCODE = 'insufficient_privilege';
END $$;
REVOKE ALL ON FUNCTION ledger.refuse_to_go_back FROM PUBLIC;

CREATE TRIGGER only_onward BEFORE UPDATE ON ledger.shards FOR EACH ROW
    WHEN (NEW.shard <> OLD.shard OR NEW.epoch < OLD.epoch OR NEW.position < OLD.position OR NEW.ledger_time < OLD.ledger_time
          OR NEW.outcome_sequence < OLD.outcome_sequence OR NEW.quarantine_sequence < OLD.quarantine_sequence)
    EXECUTE FUNCTION ledger.refuse_to_go_back();
ALTER TABLE ledger.shards ENABLE ALWAYS TRIGGER only_onward;

-- The audits look for rows of shards that there are none of, here as well.
GRANT SELECT ON ledger.quarantine_replays, ledger.forwarded TO drawdown_auditor;
