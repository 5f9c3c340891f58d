-- The newest signals that were published, and the Kafka cluster that they were published to.

CREATE SCHEMA signals;

CREATE TABLE ledger.checkpoints_signals PARTITION OF ledger.checkpoints FOR VALUES IN ('signals');
GRANT SELECT, INSERT, UPDATE ON ledger.checkpoints_signals TO drawdown_signals;
GRANT SELECT ON ledger.checkpoints_signals TO drawdown_api, drawdown_auditor;

-- The position of the last signal of every entity that ever had one (campaign_id '': the ad account). These signals are
-- published again to a new Kafka cluster.
CREATE TABLE signals.latest (
    shard smallint,
    ad_account_id text COLLATE "C",
    campaign_id text COLLATE "C",
    position bigint NOT NULL,
    PRIMARY KEY (shard, ad_account_id, campaign_id),
    CONSTRAINT latest_bounds CHECK (shard >= 0 AND position > 0),
    CONSTRAINT latest_sizes CHECK (octet_length(ad_account_id) <= 1024 AND octet_length(campaign_id) <= 1024)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

-- The Kafka cluster that has the last signals of a shard. `delivery.signals` has a partition for each shard. The partition
-- with the shard's number has been read back up to `checked_offset`: each signal below that was the newest of its entity,
-- or a newer one followed it.
CREATE TABLE signals.incarnations (
    shard smallint PRIMARY KEY,
    cluster_id text NOT NULL,
    checked_offset bigint NOT NULL DEFAULT 0,
    CONSTRAINT incarnations_bounds CHECK (shard >= 0 AND checked_offset >= 0), -- No topic has an offset below 0.
    CONSTRAINT incarnations_sizes CHECK (octet_length(cluster_id) <= 1024)
);

GRANT USAGE ON SCHEMA signals TO drawdown_signals, drawdown_auditor;
GRANT SELECT, INSERT, UPDATE ON signals.latest, signals.incarnations TO drawdown_signals;
GRANT SELECT ON signals.latest TO drawdown_auditor;
