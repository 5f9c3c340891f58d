-- An allocation process says that it lives by counting up a row of its own, which no batch locks. Whether a shard's owner
-- is alive was judged by the shard's row before: a batch that took long made its living owner look dead.

ALTER TABLE ledger.allocators ADD COLUMN beat bigint NOT NULL DEFAULT 0;
ALTER TABLE ledger.shards DROP COLUMN renewed_at;
ALTER TABLE ledger.shards ADD COLUMN released_at timestamptz; -- null: it has an owner, or never had one
GRANT SELECT ON ledger.allocators TO drawdown_api;

CREATE OR REPLACE FUNCTION ledger.move_lease(
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
