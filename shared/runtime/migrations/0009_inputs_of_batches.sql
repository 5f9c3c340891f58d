-- Everything that a decision depends on is in the ledger: a batch names the version of the rules and the release of the
-- time zones that decided it, and the zones themselves are recorded.

-- TZif files (RFC 9636), each from the first batch on that has a use for it. A release's own are never replaced.
CREATE TABLE ledger.time_zones (
    release text COLLATE "C",
    name text COLLATE "C",
    data bytea NOT NULL,
    PRIMARY KEY (release, name)
);
SELECT ledger.make_append_only('ledger.time_zones');

-- What was written before was decided by the first rules, under a release that nobody noted: the zones of that name are
-- recorded when a shard is loaded next.
ALTER TABLE ledger.batches
    ADD COLUMN rules_version integer NOT NULL DEFAULT 1,
    ADD COLUMN zones_release text NOT NULL DEFAULT 'unrecorded';
ALTER TABLE ledger.batches ALTER COLUMN rules_version DROP DEFAULT, ALTER COLUMN zones_release DROP DEFAULT;

-- A command that was refused may stand in a batch that wrote no entries, and so has no row above.
ALTER TABLE ledger.outcomes
    ADD COLUMN rules_version integer NOT NULL DEFAULT 1,
    ADD COLUMN zones_release text NOT NULL DEFAULT 'unrecorded';
ALTER TABLE ledger.outcomes ALTER COLUMN rules_version DROP DEFAULT, ALTER COLUMN zones_release DROP DEFAULT;

GRANT SELECT, INSERT ON ledger.time_zones TO drawdown_allocation;
GRANT SELECT ON ledger.time_zones TO drawdown_api, drawdown_auditor;
