-- The read model of cash spend, which shows how far deals have got, and the deals themselves.

CREATE SCHEMA incentives;

CREATE TABLE ledger.checkpoints_incentives PARTITION OF ledger.checkpoints FOR VALUES IN ('incentives');
GRANT SELECT, INSERT, UPDATE ON ledger.checkpoints_incentives TO drawdown_incentives;
GRANT SELECT ON ledger.checkpoints_incentives TO drawdown_api, drawdown_auditor;

-- Cash spend (paid from cash, credit or the credit line) by the quarter of an hour in which the spend occurred,
-- because the days and months of every time zone consist of whole quarters.
CREATE TABLE incentives.cash_spend (
    ad_account_id text COLLATE "C",
    bucket timestamptz,                     -- when the quarter begins
    amount numeric NOT NULL,
    PRIMARY KEY (ad_account_id, bucket),
    CONSTRAINT cash_spend_times CHECK (bucket >= '1960-01-01Z' AND bucket < '3001-01-01Z'),
    CONSTRAINT cash_spend_amounts CHECK (amount > -1e38 AND amount < 1e38),
    CONSTRAINT cash_spend_sizes CHECK (octet_length(ad_account_id) <= 1024)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);

-- Deals are registered through the API, so they cannot be rebuilt from the entries. A deal comes in a body of at most
-- 64 KiB, so neither of its lists is larger.
CREATE TABLE incentives.deals (
    id text COLLATE "C" PRIMARY KEY,
    client text NOT NULL,
    ad_account_ids text[] NOT NULL,
    starts_on date NOT NULL,
    ends_on date NOT NULL,                  -- the last day of the period
    time_zone text NOT NULL,
    currency text NOT NULL,
    method text NOT NULL CHECK (method IN ('whole_spend', 'marginal')),
    slabs json NOT NULL,                    -- [{"from": "50000", "rate": "0.03"}, …], ascending
    registered_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT deals_times CHECK (
        starts_on >= '1960-01-01' AND starts_on < '3001-01-01'
        AND ends_on >= '1960-01-01' AND ends_on < '3001-01-01'
        AND registered_at >= '1970-01-01Z' AND registered_at < '3000-01-01Z'
        AND updated_at >= '1970-01-01Z' AND updated_at < '3000-01-01Z'),
    CONSTRAINT deals_sizes CHECK (
        octet_length(id) <= 1024 AND octet_length(client) <= 1024 AND octet_length(ad_account_ids::text) <= 65536
        AND octet_length(time_zone) <= 1024 AND octet_length(currency) <= 1024 AND octet_length(method) <= 1024
        AND octet_length(slabs::text) <= 65536)
);

GRANT USAGE ON SCHEMA incentives TO drawdown_incentives, drawdown_api, drawdown_auditor;
GRANT SELECT, INSERT, UPDATE ON incentives.cash_spend TO drawdown_incentives;
GRANT SELECT ON incentives.cash_spend TO drawdown_api, drawdown_auditor;
GRANT SELECT, INSERT, UPDATE ON incentives.deals TO drawdown_api;
