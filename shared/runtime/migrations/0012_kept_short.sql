-- Of a record that is too large, and of a batch that cannot be read, quarantine keeps the first bytes alone. These say
-- what the whole was: the size and the SHA-256 of the value, or of the batch as Kafka has it. Null: `raw` is the whole.
ALTER TABLE ledger.quarantine
    ADD COLUMN raw_bytes bigint CHECK (raw_bytes >= 0),
    ADD COLUMN raw_sha256 bytea CHECK (octet_length(raw_sha256) = 32),
    ADD CONSTRAINT quarantine_cut CHECK ((raw_bytes IS NULL) = (raw_sha256 IS NULL));

-- Passing over one record by hand. The writer's login may note that it did so, and nothing else of the kind.
CREATE FUNCTION ledger.note_offset_skipped(person text, because text, details json) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO ledger.operators_log (operator, action, because, details)
    VALUES (session_user || ', ' || person, 'offsets_skipped', because, details) RETURNING sequence
$$;
REVOKE ALL ON FUNCTION ledger.note_offset_skipped FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger.note_offset_skipped TO drawdown_allocation;
