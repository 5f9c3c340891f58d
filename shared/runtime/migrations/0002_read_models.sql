-- What the followers make of the ledger, and what the API answers from. Every row here can be made again from
-- the entries (incentives.deals excepted: those are registered through the API).
--
-- Amounts are micros. They are numeric because sums of spend are not bounded. Ids compare byte by byte (COLLATE "C").
-- gross = billed + overdelivered. All figures of spend are net of reversals.

CREATE SCHEMA balance;
CREATE SCHEMA incentives;
CREATE SCHEMA signals;

-- Facts: one row each, written when opened.
CREATE TABLE balance.business_centers (
    business_center_id text COLLATE "C" PRIMARY KEY,
    shard smallint NOT NULL,
    currency text NOT NULL,
    time_zone text NOT NULL,
    finance_roles boolean NOT NULL,
    opened_at timestamptz NOT NULL
);

CREATE TABLE balance.ad_accounts (
    ad_account_id text COLLATE "C" PRIMARY KEY,
    business_center_id text COLLATE "C" NOT NULL,
    shard smallint NOT NULL,
    billing text NOT NULL,
    buying_type text NOT NULL,
    time_zone text NOT NULL,
    owned boolean NOT NULL,
    opened_at timestamptz NOT NULL
);
CREATE INDEX ad_accounts_of_business_center ON balance.ad_accounts (business_center_id, ad_account_id);

-- A row: automatic allocation is on. An account takes part when its Business Center has a row here
-- and the account none in left_out.
CREATE TABLE balance.automatic_allocation (
    business_center_id text COLLATE "C" PRIMARY KEY,
    enabled_at timestamptz NOT NULL
);

-- Why an account takes no part, known from its opening on; shown only once automatic allocation is on.
CREATE TABLE balance.left_out (
    business_center_id text COLLATE "C",
    ad_account_id text COLLATE "C",
    reason text NOT NULL,
    PRIMARY KEY (business_center_id, ad_account_id)
);

-- The present setting of an account's budget. No row: unlimited, never changed.
CREATE TABLE balance.budgets (
    ad_account_id text COLLATE "C" PRIMARY KEY,
    mode text NOT NULL,
    amount numeric,
    day date NOT NULL,                      -- the account's day of the last setting …
    changes_today integer NOT NULL,         -- … and the changes accepted on it
    position bigint NOT NULL                -- the entry that set it
) WITH (fillfactor = 70);

-- What a custom budget has counted since its start or last reset. A row exists while the mode is custom.
-- Counted is what was charged at a position beyond start_position, and the reversals of that.
CREATE TABLE balance.custom_budgets (
    ad_account_id text COLLATE "C" PRIMARY KEY,
    start_position bigint NOT NULL,
    started_at timestamptz NOT NULL,
    spent numeric NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

-- A campaign exists from its first spend or budget on.
CREATE TABLE balance.campaigns (
    ad_account_id text COLLATE "C",
    campaign_id text COLLATE "C",
    mode text NOT NULL DEFAULT 'unlimited',
    amount numeric,
    position bigint NOT NULL DEFAULT 0,     -- the entry that set its budget; 0: none did
    PRIMARY KEY (ad_account_id, campaign_id)
) WITH (fillfactor = 90);

-- The pause causes of an ad account (campaign_id '') or a campaign: its own set after its last change. No row: none.
CREATE TABLE balance.pauses (
    ad_account_id text COLLATE "C",
    campaign_id text COLLATE "C",
    causes text[] NOT NULL,                 -- sorted
    position bigint NOT NULL,               -- the entry that made it so
    PRIMARY KEY (ad_account_id, campaign_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

-- Pockets: of an ad account, or of the Business Center itself (ad_account_id ''). No row: 0.
-- credit_line: what is available. Used is the limit less that.
CREATE TABLE balance.pockets (
    business_center_id text COLLATE "C",
    ad_account_id text COLLATE "C",
    pocket text COLLATE "C",
    amount numeric NOT NULL,
    PRIMARY KEY (business_center_id, ad_account_id, pocket)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE balance.credit_limits (
    business_center_id text COLLATE "C" PRIMARY KEY,
    amount numeric NOT NULL
) WITH (fillfactor = 90);

-- What is left of a voucher or ad credit where it is held: by an ad account, or by the Business Center (ad_account_id '').
CREATE TABLE balance.grants (
    business_center_id text COLLATE "C",
    ad_account_id text COLLATE "C",
    pocket text COLLATE "C",                -- voucher, ad_credit
    grant_id text COLLATE "C",
    remaining numeric NOT NULL,
    PRIMARY KEY (business_center_id, ad_account_id, pocket, grant_id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

-- Spend by day: the spend's day in its ad account's time zone. A total is the sum of the days; what a budget
-- period has spent is the sum of billed over its days, so a turn-over needs no entry and no write.
CREATE TABLE balance.business_center_days (
    business_center_id text COLLATE "C",
    day date,
    billed numeric NOT NULL,
    overdelivered numeric NOT NULL,
    PRIMARY KEY (business_center_id, day)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE balance.ad_account_days (
    ad_account_id text COLLATE "C",
    day date,
    billed numeric NOT NULL,
    overdelivered numeric NOT NULL,
    PRIMARY KEY (ad_account_id, day)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE balance.campaign_days (
    ad_account_id text COLLATE "C",
    campaign_id text COLLATE "C",
    day date,
    billed numeric NOT NULL,
    overdelivered numeric NOT NULL,
    PRIMARY KEY (ad_account_id, campaign_id, day)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

-- Where in the ledger to look: block n of a shard holds the positions n * 65536 … n * 65536 + 65535.
-- ad_account_id '': the block has an entry of the Business Center, its ad accounts' included.
-- Otherwise: the block has an entry of that ad account.
CREATE TABLE balance.entry_blocks (
    business_center_id text COLLATE "C",
    ad_account_id text COLLATE "C",
    shard smallint,
    block bigint,
    PRIMARY KEY (business_center_id, ad_account_id, shard, block)
);

-- Cash spend (paid from cash, credit or the credit line) by the quarter of an hour in which the spend occurred:
-- every time zone's days and months are whole sums of quarters.
CREATE TABLE incentives.cash_spend (
    ad_account_id text COLLATE "C",
    bucket timestamptz,                     -- its beginning
    amount numeric NOT NULL,
    PRIMARY KEY (ad_account_id, bucket)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE incentives.deals (
    id text COLLATE "C" PRIMARY KEY,
    client text NOT NULL,
    ad_account_ids text[] NOT NULL,
    starts_on date NOT NULL,
    ends_on date NOT NULL,                  -- the last day that belongs to the period
    time_zone text NOT NULL,
    currency text NOT NULL,
    method text NOT NULL CHECK (method IN ('whole_spend', 'marginal')),
    slabs json NOT NULL,                    -- [{"from": "50000", "rate": "0.03"}, …], ascending
    registered_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);

-- The last signal of every entity that ever had one (campaign_id '': the ad account): the state that a new broker is told.
CREATE TABLE signals.latest (
    shard smallint,
    ad_account_id text COLLATE "C",
    campaign_id text COLLATE "C",
    position bigint NOT NULL,
    PRIMARY KEY (shard, ad_account_id, campaign_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

-- The Kafka cluster that has been told the state of a shard.
CREATE TABLE signals.incarnations (
    shard smallint PRIMARY KEY,
    cluster_id text NOT NULL
);

GRANT USAGE ON SCHEMA balance, incentives TO drawdown_follower, drawdown_api, drawdown_auditor;
GRANT USAGE ON SCHEMA signals TO drawdown_follower, drawdown_auditor;
GRANT SELECT ON ALL TABLES IN SCHEMA balance, incentives TO drawdown_follower, drawdown_api, drawdown_auditor;
GRANT SELECT ON ALL TABLES IN SCHEMA signals TO drawdown_follower, drawdown_auditor;
GRANT INSERT, UPDATE ON ALL TABLES IN SCHEMA balance, signals TO drawdown_follower;
GRANT DELETE ON balance.custom_budgets TO drawdown_follower;
GRANT INSERT, UPDATE ON incentives.cash_spend TO drawdown_follower;
GRANT INSERT, UPDATE ON incentives.deals TO drawdown_api;
