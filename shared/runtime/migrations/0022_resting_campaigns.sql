-- Campaigns that left the memory of their shard's writer because nobody had named them for long: each as it was once the
-- entries up to `position` were decided. A cache of what the entries say, but nothing else tells it as quickly; the
-- newest row before a batch holds for it. docs/decisions/what-leaves-memory.md
CREATE TABLE ledger.resting_campaigns (
    shard smallint NOT NULL,
    ad_account_id text COLLATE "C" NOT NULL,
    campaign_id text COLLATE "C" NOT NULL,
    position bigint NOT NULL CHECK (position > 0),
    state json NOT NULL,
    PRIMARY KEY (shard, ad_account_id, campaign_id, position)
);
CREATE INDEX resting_campaigns_position ON ledger.resting_campaigns (shard, position);  -- for the auditor
SELECT ledger.make_append_only('ledger.resting_campaigns');

GRANT SELECT, INSERT ON ledger.resting_campaigns TO drawdown_allocation;
GRANT SELECT ON ledger.resting_campaigns TO drawdown_auditor;
