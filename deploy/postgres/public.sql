-- Revokes rights that PostgreSQL gives to every login and that none of ours needs. Runs once as the superuser, after
-- owner.sql. Idempotent: docker compose exec postgres psql --file /docker-entrypoint-initdb.d/public.sql
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;

\connect drawdown
BEGIN;
-- Functions that write where no table's rights reach, use up what all share, or hold others up: those that
-- shared/runtime/closed_functions.py names. The owner gets them to pass on, so that what it migrates, and what it restores from a backup, may name them.
SELECT format('REVOKE ALL ON FUNCTION %1$s FROM PUBLIC; GRANT EXECUTE ON FUNCTION %1$s TO drawdown WITH GRANT OPTION',
              oid::regprocedure)
FROM pg_proc
WHERE pronamespace = 'pg_catalog'::regnamespace
    AND proname ~ '^(lo_.+|loread|lowrite|pg_(try_)?advisory_(xact_)?lock.*|pg_logical_emit_message|pg_current_xact_id|txid_current|pg_export_snapshot)$'
\gexec
-- Before the first migration this role does not exist yet, so the migration grants it.
SELECT 'GRANT EXECUTE ON FUNCTION pg_advisory_lock(integer, integer) TO drawdown_allocation'
WHERE to_regrole('drawdown_allocation') IS NOT NULL
\gexec
COMMIT;
