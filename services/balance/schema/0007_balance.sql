-- The present: the read model of money, budgets and delivery, from which the API answers. Every row can be rebuilt from
-- the entries.
--
-- Amounts are micros. They are numeric because sums of spend are not bounded. `…_amounts` refuses NaN, infinity and
-- numbers that no answer can show; no sum of spend reaches 10^38 micros. `…_bounds`, `…_times` and `…_sizes` are as in the
-- ledger (shared/ledger/schema/0002_tables.sql). Without `…_modes` and `…_causes` (sorted, each once, one dimension) a role
-- could write a budget or pause that the API cannot show. Without `…_pockets` it could give one account any number
-- of pockets. Ids compare byte by byte (COLLATE "C").
-- gross = billed + overdelivered. All figures of spend are net of reversals.

CREATE SCHEMA balance;

CREATE TABLE ledger.checkpoints_balance PARTITION OF ledger.checkpoints FOR VALUES IN ('balance');
GRANT SELECT, INSERT, UPDATE ON ledger.checkpoints_balance TO drawdown_balance;
GRANT SELECT ON ledger.checkpoints_balance TO drawdown_api, drawdown_auditor;

-- One row for each Business Center and ad account, written when it is opened.
CREATE TABLE balance.business_centers (
    business_center_id text COLLATE "C" PRIMARY KEY,
    shard smallint NOT NULL,
    currency text NOT NULL,
    time_zone text NOT NULL,
    finance_roles boolean NOT NULL,
    opened_at timestamptz NOT NULL,
    CONSTRAINT business_centers_bounds CHECK (shard >= 0),
    CONSTRAINT business_centers_times CHECK (opened_at >= '1970-01-01Z' AND opened_at < '3000-01-01Z'),
    CONSTRAINT business_centers_sizes CHECK (
        octet_length(business_center_id) <= 1024 AND octet_length(currency) <= 1024
        AND octet_length(time_zone) <= 1024)
);

CREATE TABLE balance.ad_accounts (
    ad_account_id text COLLATE "C" PRIMARY KEY,
    business_center_id text COLLATE "C" NOT NULL,
    shard smallint NOT NULL,
    billing text NOT NULL,
    buying_type text NOT NULL,
    time_zone text NOT NULL,
    owned boolean NOT NULL,
    opened_at timestamptz NOT NULL,
    CONSTRAINT ad_accounts_bounds CHECK (shard >= 0),
    CONSTRAINT ad_accounts_times CHECK (opened_at >= '1970-01-01Z' AND opened_at < '3000-01-01Z'),
    CONSTRAINT ad_accounts_sizes CHECK (
        octet_length(ad_account_id) <= 1024 AND octet_length(business_center_id) <= 1024
        AND octet_length(billing) <= 1024 AND octet_length(buying_type) <= 1024 AND octet_length(time_zone) <= 1024)
);
CREATE INDEX ad_accounts_of_business_center ON balance.ad_accounts (business_center_id, ad_account_id);

-- A row means that automatic allocation is on. An account takes part if its Business Center has a row here and the
-- account has no row in left_out.
CREATE TABLE balance.automatic_allocation (
    business_center_id text COLLATE "C" PRIMARY KEY,
    enabled_at timestamptz NOT NULL,
    CONSTRAINT automatic_allocation_times CHECK (enabled_at >= '1970-01-01Z' AND enabled_at < '3000-01-01Z'),
    CONSTRAINT automatic_allocation_sizes CHECK (octet_length(business_center_id) <= 1024)
);

-- The reason why an account takes no part. The row is written when the account is opened, but the API only shows it once
-- automatic allocation is on.
CREATE TABLE balance.left_out (
    business_center_id text COLLATE "C",
    ad_account_id text COLLATE "C",
    reason text NOT NULL,
    PRIMARY KEY (business_center_id, ad_account_id),
    CONSTRAINT left_out_sizes CHECK (
        octet_length(business_center_id) <= 1024 AND octet_length(ad_account_id) <= 1024
        AND octet_length(reason) <= 1024)
);

-- The present setting of an account's budget. No row means that it is unlimited and was never changed.
CREATE TABLE balance.budgets (
    ad_account_id text COLLATE "C" PRIMARY KEY,
    mode text NOT NULL,
    amount numeric,
    day date NOT NULL,                      -- the day of the last setting, in the account's time zone
    changes_today integer NOT NULL,         -- the changes accepted on that day
    position bigint NOT NULL,               -- the entry that set it
    CONSTRAINT budgets_bounds CHECK (position > 0 AND changes_today >= 0),
    CONSTRAINT budgets_times CHECK (day >= '1960-01-01' AND day < '3001-01-01'),
    CONSTRAINT budgets_amounts CHECK (amount > -1e38 AND amount < 1e38),
    CONSTRAINT budgets_modes CHECK ((mode = 'unlimited') = (amount IS NULL)),
    CONSTRAINT budgets_sizes CHECK (octet_length(ad_account_id) <= 1024 AND octet_length(mode) <= 1024)
) WITH (fillfactor = 70);

-- The spend that a custom budget has counted since its start or last reset. A row exists while the mode is custom.
-- A budget counts what was charged at a position beyond start_position, less the reversals of that.
CREATE TABLE balance.custom_budgets (
    ad_account_id text COLLATE "C" PRIMARY KEY,
    start_position bigint NOT NULL,
    started_at timestamptz NOT NULL,
    spent numeric NOT NULL,
    CONSTRAINT custom_budgets_bounds CHECK (start_position > 0),
    CONSTRAINT custom_budgets_times CHECK (started_at >= '1970-01-01Z' AND started_at < '3000-01-01Z'),
    CONSTRAINT custom_budgets_amounts CHECK (spent > -1e38 AND spent < 1e38),
    CONSTRAINT custom_budgets_sizes CHECK (octet_length(ad_account_id) <= 1024)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

-- A campaign has a row from its first spend or budget on.
CREATE TABLE balance.campaigns (
    ad_account_id text COLLATE "C",
    campaign_id text COLLATE "C",
    mode text NOT NULL DEFAULT 'unlimited',
    amount numeric,
    position bigint NOT NULL DEFAULT 0,     -- the entry that set its budget; 0: it was never set
    PRIMARY KEY (ad_account_id, campaign_id),
    CONSTRAINT campaigns_bounds CHECK (position >= 0),
    CONSTRAINT campaigns_amounts CHECK (amount > -1e38 AND amount < 1e38),
    CONSTRAINT campaigns_modes CHECK ((mode = 'unlimited') = (amount IS NULL)),
    CONSTRAINT campaigns_sizes CHECK (
        octet_length(ad_account_id) <= 1024 AND octet_length(campaign_id) <= 1024 AND octet_length(mode) <= 1024)
) WITH (fillfactor = 90);

-- The present pause causes of an ad account (campaign_id '') or campaign, without those that it inherits.
-- No row means that there are none.
CREATE TABLE balance.pauses (
    ad_account_id text COLLATE "C",
    campaign_id text COLLATE "C",
    causes text[] NOT NULL,                 -- sorted
    position bigint NOT NULL,               -- the entry after which these causes hold
    PRIMARY KEY (ad_account_id, campaign_id),
    CONSTRAINT pauses_bounds CHECK (position > 0),
    CONSTRAINT pauses_causes CHECK (causes = array_remove(ARRAY[
        CASE WHEN 'ad_account_balance' = ANY (causes) THEN 'ad_account_balance' END,
        CASE WHEN 'ad_account_budget' = ANY (causes) THEN 'ad_account_budget' END,
        CASE WHEN 'business_center_balance' = ANY (causes) THEN 'business_center_balance' END,
        CASE WHEN 'campaign_budget' = ANY (causes) THEN 'campaign_budget' END], NULL)),
    CONSTRAINT pauses_sizes CHECK (
        octet_length(ad_account_id) <= 1024 AND octet_length(campaign_id) <= 1024
        AND octet_length(causes::text) <= 1048576)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

-- The balances of pockets of an ad account, or of the Business Center itself (ad_account_id ''). No row means 0.
-- For credit_line it is the available amount; the used amount is the limit less that.
CREATE TABLE balance.pockets (
    business_center_id text COLLATE "C",
    ad_account_id text COLLATE "C",
    pocket text COLLATE "C",
    amount numeric NOT NULL,
    PRIMARY KEY (business_center_id, ad_account_id, pocket),
    CONSTRAINT pockets_pockets CHECK (pocket IN ('voucher', 'ad_credit', 'cash', 'credit', 'credit_line')),
    CONSTRAINT pockets_amounts CHECK (amount > -1e38 AND amount < 1e38),
    CONSTRAINT pockets_sizes CHECK (
        octet_length(business_center_id) <= 1024 AND octet_length(ad_account_id) <= 1024
        AND octet_length(pocket) <= 1024)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE balance.credit_limits (
    business_center_id text COLLATE "C" PRIMARY KEY,
    amount numeric NOT NULL,
    CONSTRAINT credit_limits_amounts CHECK (amount > -1e38 AND amount < 1e38),
    CONSTRAINT credit_limits_sizes CHECK (octet_length(business_center_id) <= 1024)
) WITH (fillfactor = 90);

-- The remaining amount of a voucher or ad credit in the pocket of an ad account, or of the Business Center
-- (ad_account_id '').
CREATE TABLE balance.grants (
    business_center_id text COLLATE "C",
    ad_account_id text COLLATE "C",
    pocket text COLLATE "C",                -- voucher, ad_credit
    grant_id text COLLATE "C",
    remaining numeric NOT NULL,
    PRIMARY KEY (business_center_id, ad_account_id, pocket, grant_id),
    CONSTRAINT grants_pockets CHECK (pocket IN ('voucher', 'ad_credit', 'cash', 'credit', 'credit_line')),
    CONSTRAINT grants_amounts CHECK (remaining > -1e38 AND remaining < 1e38),
    CONSTRAINT grants_sizes CHECK (
        octet_length(business_center_id) <= 1024 AND octet_length(ad_account_id) <= 1024
        AND octet_length(pocket) <= 1024 AND octet_length(grant_id) <= 1024)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

-- Spend by day, in the time zone of the ad account. A total is the sum of the days. The spend of a
-- budget period is the sum of billed over its days, so the beginning of a period needs no entry and no write.
CREATE TABLE balance.business_center_days (
    business_center_id text COLLATE "C",
    day date,
    billed numeric NOT NULL,
    overdelivered numeric NOT NULL,
    PRIMARY KEY (business_center_id, day),
    CONSTRAINT business_center_days_times CHECK (day >= '1960-01-01' AND day < '3001-01-01'),
    CONSTRAINT business_center_days_amounts CHECK (
        billed > -1e38 AND billed < 1e38 AND overdelivered > -1e38 AND overdelivered < 1e38),
    CONSTRAINT business_center_days_sizes CHECK (octet_length(business_center_id) <= 1024)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE balance.ad_account_days (
    ad_account_id text COLLATE "C",
    day date,
    billed numeric NOT NULL,
    overdelivered numeric NOT NULL,
    PRIMARY KEY (ad_account_id, day),
    CONSTRAINT ad_account_days_times CHECK (day >= '1960-01-01' AND day < '3001-01-01'),
    CONSTRAINT ad_account_days_amounts CHECK (
        billed > -1e38 AND billed < 1e38 AND overdelivered > -1e38 AND overdelivered < 1e38),
    CONSTRAINT ad_account_days_sizes CHECK (octet_length(ad_account_id) <= 1024)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE balance.campaign_days (
    ad_account_id text COLLATE "C",
    campaign_id text COLLATE "C",
    day date,
    billed numeric NOT NULL,
    overdelivered numeric NOT NULL,
    PRIMARY KEY (ad_account_id, campaign_id, day),
    CONSTRAINT campaign_days_times CHECK (day >= '1960-01-01' AND day < '3001-01-01'),
    CONSTRAINT campaign_days_amounts CHECK (
        billed > -1e38 AND billed < 1e38 AND overdelivered > -1e38 AND overdelivered < 1e38),
    CONSTRAINT campaign_days_sizes CHECK (
        octet_length(ad_account_id) <= 1024 AND octet_length(campaign_id) <= 1024)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

-- The blocks of the ledger in which to look for entries: block n of a shard holds the positions n * 65536 … n * 65536 +
-- 65535. With ad_account_id '' the block has an entry of the Business Center or one of its ad accounts, otherwise an
-- entry of that ad account.
CREATE TABLE balance.entry_blocks (
    business_center_id text COLLATE "C",
    ad_account_id text COLLATE "C",
    shard smallint,
    block bigint,
    PRIMARY KEY (business_center_id, ad_account_id, shard, block),
    CONSTRAINT entry_blocks_bounds CHECK (shard >= 0 AND block >= 0),
    CONSTRAINT entry_blocks_sizes CHECK (
        octet_length(business_center_id) <= 1024 AND octet_length(ad_account_id) <= 1024)
);

-- The largest amount of one spend of a Business Center, with a row for each time that it was set. At a position, the last
-- row up to that position holds.
CREATE TABLE balance.largest_spends (
    business_center_id text COLLATE "C",
    position bigint,
    amount bigint,                          -- null: no longer limited
    PRIMARY KEY (business_center_id, position),
    CONSTRAINT largest_spends_bounds CHECK (position > 0),
    CONSTRAINT largest_spends_sizes CHECK (octet_length(business_center_id) <= 1024)
);

-- Used by a closing, which asks for the few budgets that were set since the previous closing.
CREATE INDEX budgets_by_position ON balance.budgets (position);
CREATE INDEX campaigns_by_position ON balance.campaigns (position) WHERE position > 0;

GRANT USAGE ON SCHEMA balance TO drawdown_balance, drawdown_api, drawdown_auditor;
GRANT SELECT ON ALL TABLES IN SCHEMA balance TO drawdown_balance, drawdown_api, drawdown_auditor;
GRANT INSERT ON ALL TABLES IN SCHEMA balance TO drawdown_balance;
GRANT UPDATE ON balance.budgets, balance.custom_budgets, balance.campaigns, balance.pauses, balance.pockets,
    balance.credit_limits, balance.grants, balance.business_center_days, balance.ad_account_days, balance.campaign_days
    TO drawdown_balance;
GRANT DELETE ON balance.custom_budgets TO drawdown_balance;
