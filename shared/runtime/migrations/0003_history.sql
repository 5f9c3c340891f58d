-- The past of balances, budgets and delivery. The balance follower closes its books of a shard every so many
-- positions: what moved since the closing before is kept as sums, what was so at that position as rows. The state at
-- any position is then the closings up to it and the entries since the last of them.
--
-- Everything here comes from the entries. Keys begin with the closing, so that a closing is written in one place,
-- at the end of each table; a reader looks the entity up once in each closing.

-- The positions of a shard up to which the books have been closed.
CREATE TABLE balance.closings (
    shard smallint,
    position bigint,
    PRIMARY KEY (shard, position)
);

-- What moved in a pocket since the closing before, by the quarter of an hour in which it was recorded: every time
-- zone's days are whole sums of quarters. ad_account_id '': the Business Center's own pockets.
CREATE TABLE balance.pocket_movements (
    shard smallint,
    closing bigint,
    business_center_id text COLLATE "C",
    ad_account_id text COLLATE "C",
    pocket text COLLATE "C",
    quarter timestamptz,                    -- its beginning
    amount numeric NOT NULL,
    limit_change numeric NOT NULL,          -- credit_line: what of it changed the limit
    PRIMARY KEY (shard, closing, business_center_id, ad_account_id, pocket, quarter)
);

-- Spend recorded since the closing before, net of reversals. Days are those of the ad account's time zone.
CREATE TABLE balance.business_center_spend (
    shard smallint,
    closing bigint,
    business_center_id text COLLATE "C",
    billed numeric NOT NULL,
    overdelivered numeric NOT NULL,
    PRIMARY KEY (shard, closing, business_center_id)
);

CREATE TABLE balance.ad_account_spend (
    shard smallint,
    closing bigint,
    ad_account_id text COLLATE "C",
    day date,
    billed numeric NOT NULL,
    overdelivered numeric NOT NULL,
    PRIMARY KEY (shard, closing, ad_account_id, day)
);

CREATE TABLE balance.campaign_spend (
    shard smallint,
    closing bigint,
    ad_account_id text COLLATE "C",
    campaign_id text COLLATE "C",
    day date,
    billed numeric NOT NULL,
    overdelivered numeric NOT NULL,
    PRIMARY KEY (shard, closing, ad_account_id, campaign_id, day)
);

-- An account's budget as it was at a closing. A row where the account has a budget and had spend or a budget fact
-- since the closing before: the last row is what still held.
CREATE TABLE balance.budget_closings (
    shard smallint,
    closing bigint,
    ad_account_id text COLLATE "C",
    mode text NOT NULL,
    amount numeric,
    day date NOT NULL,
    changes_today integer NOT NULL,
    start_position bigint,                  -- this and the two below: custom budgets only
    started_at timestamptz,
    spent numeric,
    PRIMARY KEY (shard, closing, ad_account_id)
);

-- A campaign's budget as it was at a closing, where it was set since the closing before.
CREATE TABLE balance.campaign_budget_closings (
    shard smallint,
    closing bigint,
    ad_account_id text COLLATE "C",
    campaign_id text COLLATE "C",
    mode text NOT NULL,
    amount numeric,
    PRIMARY KEY (shard, closing, ad_account_id, campaign_id)
);

-- Pause causes as they were at a closing, where they changed since the closing before.
CREATE TABLE balance.pause_closings (
    shard smallint,
    closing bigint,
    ad_account_id text COLLATE "C",
    campaign_id text COLLATE "C",           -- '': the ad account's own
    causes text[] NOT NULL,
    PRIMARY KEY (shard, closing, ad_account_id, campaign_id)
);

-- A closing asks which budgets were set since the one before. Few ever are.
CREATE INDEX budgets_by_position ON balance.budgets (position);
CREATE INDEX campaigns_by_position ON balance.campaigns (position) WHERE position > 0;

-- Which position a time corresponds to. Ledger time never goes back within a shard.
CREATE INDEX batches_by_time ON ledger.batches (shard, recorded_at, last_position);

GRANT SELECT ON ALL TABLES IN SCHEMA balance TO drawdown_follower, drawdown_api, drawdown_auditor;
GRANT INSERT ON balance.closings, balance.pocket_movements, balance.business_center_spend, balance.ad_account_spend,
    balance.campaign_spend, balance.budget_closings, balance.campaign_budget_closings, balance.pause_closings
    TO drawdown_follower;

-- Books that were never closed cannot be closed later: a read model that is older than this is made again.
TRUNCATE balance.business_centers, balance.ad_accounts, balance.automatic_allocation, balance.left_out, balance.budgets,
    balance.custom_budgets, balance.campaigns, balance.pauses, balance.pockets, balance.credit_limits, balance.grants,
    balance.business_center_days, balance.ad_account_days, balance.campaign_days, balance.entry_blocks;
DELETE FROM ledger.checkpoints WHERE follower = 'balance';
