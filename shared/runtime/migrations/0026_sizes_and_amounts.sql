-- What quarantine takes in, as the writer writes it: values of at most 64 KiB, records of at most 80 KiB, a header's name
-- with twelve bytes of JSON for each character, and a sentence of at most 2,000 characters. A row without a size would be
-- read by everybody who lists quarantine. Rows from before there were bounds may be larger: they are not looked at.
ALTER TABLE ledger.quarantine ADD CONSTRAINT quarantine_sizes CHECK (
    octet_length(raw) <= 65536 AND octet_length(key) <= 81920 AND octet_length(headers::text) <= 1048576
    AND octet_length(detail) <= 8000 AND octet_length(reason) <= 64 AND octet_length(topic) <= 249
    AND octet_length(business_center_id) <= 256) NOT VALID;

-- What a writer says of itself, which /readyz reads each second.
ALTER TABLE ledger.shard_states ADD CONSTRAINT shard_states_sizes CHECK (
    octet_length(owner) <= 1024 AND octet_length(state) <= 64 AND octet_length(detail) <= 8000) NOT VALID;
ALTER TABLE ledger.allocators ADD CONSTRAINT allocators_sizes CHECK (octet_length(owner) <= 1024) NOT VALID;

-- Amounts that every reader has: `numeric` knows NaN and infinity, and numbers of 130,000 digits. No sum of spend comes to
-- 10^38 micros. NaN is more than infinity to PostgreSQL, so it is out of bounds as well.
--
-- Whatever already lies out of bounds makes this migration fail, and nothing is changed: docs/runbook.md says what then.
DO $$
DECLARE
    own record;
BEGIN
    FOR own IN
        SELECT c.oid::regclass AS name, c.relname, string_agg(
            format('%1$I > -1e38 AND %1$I < 1e38', a.attname), ' AND ' ORDER BY a.attnum) AS bounds
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace::regnamespace::text IN ('balance', 'incentives')
            AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
            AND a.atttypid = 'numeric'::regtype
        GROUP BY c.oid, c.relname ORDER BY c.oid
    LOOP
        EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I CHECK (%s)', own.name, own.relname || '_amounts', own.bounds);
    END LOOP;
END $$;
