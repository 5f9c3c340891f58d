-- Bounds for what names a quarantined record. An id of the API has a sequence of at most eighteen digits; a cursor behind a
-- longer one could not be passed back.
ALTER TABLE ledger.quarantine ADD CONSTRAINT quarantine_ids CHECK (
    shard >= 0 AND sequence < 1000000000000000000
    AND replay_shard >= 0 AND replay_sequence > 0 AND replay_sequence < 1000000000000000000);
ALTER TABLE ledger.quarantine_replays ADD CONSTRAINT quarantine_replays_ids CHECK (shard >= 0);
ALTER TABLE ledger.forwarded ADD CONSTRAINT forwarded_ids CHECK (
    shard >= 0 AND replay_shard >= 0 AND replay_sequence > 0);
