-- What a service writes has a size. A row that is larger than anything of ours ends each process that reads it, or holds
-- it up, and nothing takes the row away again. Rows from before are not looked at.
--
-- Ids have at most 64 characters, names of releases and policies a few dozen; an entry has at most 65,535 bytes
-- (docs/ledger.md), a command as it came 64 KiB, of which each character may take six as JSON.
ALTER TABLE ledger.entries ADD CONSTRAINT entries_sizes CHECK (
    octet_length(details::text) <= 65536 AND octet_length(kind) <= 256 AND octet_length(holder) <= 256
    AND octet_length(pocket) <= 256 AND octet_length(grant_id) <= 256 AND octet_length(business_center_id) <= 256
    AND octet_length(ad_account_id) <= 256 AND octet_length(campaign_id) <= 256 AND octet_length(cause) <= 256) NOT VALID;
ALTER TABLE ledger.batches ADD CONSTRAINT batches_sizes CHECK (
    octet_length(root) = 32 AND octet_length(policy_version) <= 1024 AND octet_length(zones_release) <= 256) NOT VALID;
ALTER TABLE ledger.outcomes ADD CONSTRAINT outcomes_sizes CHECK (
    octet_length(content::text) <= 1048576 AND octet_length(message) <= 65536 AND octet_length(type) <= 256
    AND octet_length(business_center_id) <= 256 AND octet_length(status) <= 256 AND octet_length(code) <= 256
    AND octet_length(zones_release) <= 256 AND octet_length(policy_version) <= 1024 AND octet_length(via) <= 256) NOT VALID;
ALTER TABLE ledger.ad_accounts ADD CONSTRAINT ad_accounts_sizes CHECK (
    octet_length(ad_account_id) <= 256 AND octet_length(business_center_id) <= 256) NOT VALID;
ALTER TABLE ledger.resting_campaigns ADD CONSTRAINT resting_campaigns_sizes CHECK (
    octet_length(ad_account_id) <= 256 AND octet_length(campaign_id) <= 256
    AND octet_length(state::text) <= 1048576) NOT VALID;
ALTER TABLE ledger.snapshots ADD CONSTRAINT snapshots_sizes CHECK (octet_length(state) <= 134217728) NOT VALID;
-- A time zone has four kilobytes at most, and a release six hundred of them.
ALTER TABLE ledger.time_zones ADD CONSTRAINT time_zones_sizes CHECK (
    octet_length(data) <= 16384 AND octet_length(name) <= 256 AND octet_length(release) <= 256) NOT VALID;
ALTER TABLE ledger.policies ADD CONSTRAINT policies_sizes CHECK (
    octet_length(content::text) <= 65536 AND octet_length(version) <= 1024) NOT VALID;
ALTER TABLE ledger.shards ADD CONSTRAINT shards_sizes CHECK (
    octet_length(frontier) <= 4096 AND octet_length(owner) <= 1024 AND octet_length(incarnation) <= 1024) NOT VALID;

-- What is recorded for a version is the policy of that version.
ALTER TABLE ledger.policies ADD CONSTRAINT policies_versions CHECK (
    (json_typeof(content) = 'object' AND content ->> 'version' = version) IS TRUE) NOT VALID;

-- Whoever loads a shard reads all zones of a release that its batches name.
CREATE FUNCTION ledger.refuse_many_zones() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM ledger.time_zones WHERE release IN (SELECT release FROM added)
               GROUP BY release HAVING count(*) > 2000) THEN
        RAISE EXCEPTION 'a release of time zones has no more than 2000' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER few_zones AFTER INSERT ON ledger.time_zones REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_many_zones();
ALTER TABLE ledger.time_zones ENABLE ALWAYS TRIGGER few_zones;

-- A follower that stood ahead of the ledger would pass over what comes next.
CREATE FUNCTION ledger.refuse_to_run_ahead() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.position > (SELECT CASE NEW.follower WHEN 'outcomes' THEN outcome_sequence ELSE position END
                       FROM ledger.shards WHERE shard = NEW.shard) THEN
        RAISE EXCEPTION 'the checkpoint of % in shard % would be ahead of the ledger', NEW.follower, NEW.shard
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER not_ahead BEFORE INSERT OR UPDATE ON ledger.checkpoints
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_to_run_ahead();
ALTER TABLE ledger.checkpoints ENABLE ALWAYS TRIGGER not_ahead;
REVOKE ALL ON FUNCTION ledger.refuse_many_zones(), ledger.refuse_to_run_ahead() FROM PUBLIC;
