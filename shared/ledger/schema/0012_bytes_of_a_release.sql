-- Bounds the zones of a release in bytes as well: a real release has six hundred zones, and a megabyte of them.
CREATE OR REPLACE FUNCTION ledger.refuse_many_zones() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM ledger.time_zones WHERE release IN (SELECT release FROM added)
               GROUP BY release HAVING count(*) > 2000 OR sum(octet_length(data)) > 4194304) THEN
        RAISE EXCEPTION 'a release of time zones has no more than 2000, and no more than 4 MiB'
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
