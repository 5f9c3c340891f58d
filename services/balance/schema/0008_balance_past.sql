-- The past of balances, budgets and delivery. The balance follower closes the books of a shard at regular positions. A
-- closing keeps movements since the previous closing as sums, and the state at its position as rows. The state at any
-- position then follows from the closings up to it and the entries since the last of them.
--
-- Every row can be rebuilt from the entries. Keys begin with the closing, so that a closing is written in one place, at
-- the end of each table. A reader looks an entity up once in each closing.

-- The positions of a shard at which the books were closed.
CREATE TABLE balance.closings (
    shard smallint,
    position bigint,
    PRIMARY KEY (shard, position),
    CONSTRAINT closings_bounds CHECK (shard >= 0 AND position > 0)
);

-- The movements of a pocket since the previous closing, by the quarter of an hour in which they were recorded, because
-- the days of every time zone consist of whole quarters. ad_account_id '': the Business Center's own pockets.
CREATE TABLE balance.pocket_movements (
    shard smallint,
    closing bigint,
    business_center_id text COLLATE "C",
    ad_account_id text COLLATE "C",
    pocket text COLLATE "C",
    quarter timestamptz,                    -- when the quarter begins
    amount numeric NOT NULL,
    limit_change numeric NOT NULL,          -- credit_line: the part that changed the limit
    PRIMARY KEY (shard, closing, business_center_id, ad_account_id, pocket, quarter),
    CONSTRAINT pocket_movements_pockets CHECK (pocket IN ('voucher', 'ad_credit', 'cash', 'credit', 'credit_line')),
    CONSTRAINT pocket_movements_bounds CHECK (shard >= 0 AND closing > 0),
    CONSTRAINT pocket_movements_times CHECK (quarter >= '1960-01-01Z' AND quarter < '3001-01-01Z'),
    CONSTRAINT pocket_movements_amounts CHECK (
        amount > -1e38 AND amount < 1e38 AND limit_change > -1e38 AND limit_change < 1e38),
    CONSTRAINT pocket_movements_sizes CHECK (
        octet_length(business_center_id) <= 1024 AND octet_length(ad_account_id) <= 1024
        AND octet_length(pocket) <= 1024)
);

-- Spend recorded since the previous closing, net of reversals. Days are those of the ad account's time zone.
CREATE TABLE balance.business_center_spend (
    shard smallint,
    closing bigint,
    business_center_id text COLLATE "C",
    billed numeric NOT NULL,
    overdelivered numeric NOT NULL,
    PRIMARY KEY (shard, closing, business_center_id),
    CONSTRAINT business_center_spend_bounds CHECK (shard >= 0 AND closing > 0),
    CONSTRAINT business_center_spend_amounts CHECK (
        billed > -1e38 AND billed < 1e38 AND overdelivered > -1e38 AND overdelivered < 1e38),
    CONSTRAINT business_center_spend_sizes CHECK (octet_length(business_center_id) <= 1024)
);

CREATE TABLE balance.ad_account_spend (
    shard smallint,
    closing bigint,
    ad_account_id text COLLATE "C",
    day date,
    billed numeric NOT NULL,
    overdelivered numeric NOT NULL,
    PRIMARY KEY (shard, closing, ad_account_id, day),
    CONSTRAINT ad_account_spend_bounds CHECK (shard >= 0 AND closing > 0),
    CONSTRAINT ad_account_spend_times CHECK (day >= '1960-01-01' AND day < '3001-01-01'),
    CONSTRAINT ad_account_spend_amounts CHECK (
        billed > -1e38 AND billed < 1e38 AND overdelivered > -1e38 AND overdelivered < 1e38),
    CONSTRAINT ad_account_spend_sizes CHECK (octet_length(ad_account_id) <= 1024)
);

CREATE TABLE balance.campaign_spend (
    shard smallint,
    closing bigint,
    ad_account_id text COLLATE "C",
    campaign_id text COLLATE "C",
    day date,
    billed numeric NOT NULL,
    overdelivered numeric NOT NULL,
    PRIMARY KEY (shard, closing, ad_account_id, campaign_id, day),
    CONSTRAINT campaign_spend_bounds CHECK (shard >= 0 AND closing > 0),
    CONSTRAINT campaign_spend_times CHECK (day >= '1960-01-01' AND day < '3001-01-01'),
    CONSTRAINT campaign_spend_amounts CHECK (
        billed > -1e38 AND billed < 1e38 AND overdelivered > -1e38 AND overdelivered < 1e38),
    CONSTRAINT campaign_spend_sizes CHECK (
        octet_length(ad_account_id) <= 1024 AND octet_length(campaign_id) <= 1024)
);

-- An account's budget at a closing. There is a row if the account has a budget and had spend or a change of its budget
-- since the previous closing. Without a row, the one of an earlier closing still holds.
CREATE TABLE balance.budget_closings (
    shard smallint,
    closing bigint,
    ad_account_id text COLLATE "C",
    mode text NOT NULL,
    amount numeric,
    day date NOT NULL,
    changes_today integer NOT NULL,
    start_position bigint,                  -- this column and the next two: custom budgets only
    started_at timestamptz,
    spent numeric,
    PRIMARY KEY (shard, closing, ad_account_id),
    CONSTRAINT budget_closings_bounds CHECK (shard >= 0 AND closing > 0 AND start_position > 0 AND changes_today >= 0),
    CONSTRAINT budget_closings_times CHECK (
        day >= '1960-01-01' AND day < '3001-01-01' AND started_at >= '1970-01-01Z' AND started_at < '3000-01-01Z'),
    CONSTRAINT budget_closings_amounts CHECK (
        amount > -1e38 AND amount < 1e38 AND spent > -1e38 AND spent < 1e38),
    CONSTRAINT budget_closings_modes CHECK ((mode = 'unlimited') = (amount IS NULL)),
    CONSTRAINT budget_closings_sizes CHECK (octet_length(ad_account_id) <= 1024 AND octet_length(mode) <= 1024)
);

-- A campaign's budget at a closing, if it was set since the previous closing.
CREATE TABLE balance.campaign_budget_closings (
    shard smallint,
    closing bigint,
    ad_account_id text COLLATE "C",
    campaign_id text COLLATE "C",
    mode text NOT NULL,
    amount numeric,
    PRIMARY KEY (shard, closing, ad_account_id, campaign_id),
    CONSTRAINT campaign_budget_closings_bounds CHECK (shard >= 0 AND closing > 0),
    CONSTRAINT campaign_budget_closings_amounts CHECK (amount > -1e38 AND amount < 1e38),
    CONSTRAINT campaign_budget_closings_modes CHECK ((mode = 'unlimited') = (amount IS NULL)),
    CONSTRAINT campaign_budget_closings_sizes CHECK (
        octet_length(ad_account_id) <= 1024 AND octet_length(campaign_id) <= 1024 AND octet_length(mode) <= 1024)
);

-- The pause causes at a closing, if they changed since the previous closing.
CREATE TABLE balance.pause_closings (
    shard smallint,
    closing bigint,
    ad_account_id text COLLATE "C",
    campaign_id text COLLATE "C",           -- '': the ad account's own
    causes text[] NOT NULL,
    PRIMARY KEY (shard, closing, ad_account_id, campaign_id),
    CONSTRAINT pause_closings_bounds CHECK (shard >= 0 AND closing > 0),
    CONSTRAINT pause_closings_causes CHECK (causes = array_remove(ARRAY[
        CASE WHEN 'ad_account_balance' = ANY (causes) THEN 'ad_account_balance' END,
        CASE WHEN 'ad_account_budget' = ANY (causes) THEN 'ad_account_budget' END,
        CASE WHEN 'business_center_balance' = ANY (causes) THEN 'business_center_balance' END,
        CASE WHEN 'campaign_budget' = ANY (causes) THEN 'campaign_budget' END], NULL)),
    CONSTRAINT pause_closings_sizes CHECK (
        octet_length(ad_account_id) <= 1024 AND octet_length(campaign_id) <= 1024
        AND octet_length(causes::text) <= 1048576)
);

GRANT SELECT, INSERT ON balance.closings, balance.pocket_movements, balance.business_center_spend,
    balance.ad_account_spend, balance.campaign_spend, balance.budget_closings, balance.campaign_budget_closings,
    balance.pause_closings TO drawdown_balance;
GRANT SELECT ON balance.closings, balance.pocket_movements, balance.business_center_spend, balance.ad_account_spend,
    balance.campaign_spend, balance.budget_closings, balance.campaign_budget_closings, balance.pause_closings
    TO drawdown_api, drawdown_auditor;
