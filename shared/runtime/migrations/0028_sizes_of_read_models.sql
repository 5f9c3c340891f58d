-- What a follower or the API writes has a size, like what goes into the ledger: a row that is larger than anything of
-- ours ends each process that reads it. Rows from before are not looked at.
--
-- Texts are ids, names of time zones and clients, and words of ours; a deal came as a body of at most 64 KiB.
DO $$
DECLARE
    own record;
BEGIN
    FOR own IN
        SELECT c.oid::regclass AS name, c.relname,
               string_agg(format('octet_length(%I::text) <= %s', attname, most), ' AND ' ORDER BY attnum) AS bounds
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        JOIN (VALUES ('text'::regtype, 1024), ('text[]', 1048576), ('json', 1048576)) AS sized (type, most)
            ON sized.type = atttypid
        WHERE relnamespace = ANY ('{balance,incentives,signals}'::regnamespace[]) AND relkind IN ('r', 'p')
            AND attnum > 0 AND NOT attisdropped
        GROUP BY c.oid, relname
    LOOP
        EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I CHECK (%s) NOT VALID', own.name, own.relname || '_sizes', own.bounds);
    END LOOP;
END $$;
