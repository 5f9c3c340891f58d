-- Folds the money at the positions $2 … $3 of shard $1. The facts up to $3 must have been folded before, because what a
-- custom budget counts depends on its last start. The range is read and summed once; all other parts read those sums.
WITH money AS MATERIALIZED (
    SELECT e.business_center_id, e.ad_account_id, e.campaign_id, e.day, e.holder, e.pocket, e.grant_id,
        e.position / 65536 AS block,
        e.kind = 'credit_limit_change' AS limit_changed,
        e.pocket IS NULL AND e.kind <> 'forfeit' AS overdelivery,
        COALESCE(b.start_position < CASE
            WHEN e.kind IN ('reversal', 'forfeit') THEN (e.details ->> 'spend_position')::bigint
            ELSE e.position END, false) AS counted,
        sum(e.amount) AS amount
    FROM ledger.entries e LEFT JOIN balance.custom_budgets b ON b.ad_account_id = e.ad_account_id
    WHERE e.shard = $1 AND e.position BETWEEN $2 AND $3 AND e.amount IS NOT NULL
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
),
-- Debits are negative and returns (a forfeit included) positive. Billed is their sum with the sign reversed.
spend AS MATERIALIZED (
    SELECT business_center_id, ad_account_id, campaign_id, day,
        COALESCE(-sum(amount) FILTER (WHERE NOT overdelivery), 0) AS billed,
        COALESCE(sum(amount) FILTER (WHERE overdelivery), 0) AS overdelivered,
        -sum(amount) FILTER (WHERE NOT overdelivery AND counted) AS counted
    FROM money WHERE day IS NOT NULL
    GROUP BY 1, 2, 3, 4
),
campaign_days AS (
    INSERT INTO balance.campaign_days AS d (ad_account_id, campaign_id, day, billed, overdelivered)
    SELECT ad_account_id, campaign_id, day, billed, overdelivered FROM spend
    ON CONFLICT (ad_account_id, campaign_id, day) DO UPDATE SET billed = d.billed + excluded.billed,
        overdelivered = d.overdelivered + excluded.overdelivered
    RETURNING ad_account_id, campaign_id, xmax = 0 AS is_new
),
campaigns AS (
    INSERT INTO balance.campaigns (ad_account_id, campaign_id)
    SELECT ad_account_id, campaign_id FROM campaign_days WHERE is_new
    ON CONFLICT DO NOTHING
),
ad_account_days AS (
    INSERT INTO balance.ad_account_days AS d (ad_account_id, day, billed, overdelivered)
    SELECT ad_account_id, day, sum(billed), sum(overdelivered) FROM spend GROUP BY 1, 2
    ON CONFLICT (ad_account_id, day) DO UPDATE SET billed = d.billed + excluded.billed,
        overdelivered = d.overdelivered + excluded.overdelivered
),
business_center_days AS (
    INSERT INTO balance.business_center_days AS d (business_center_id, day, billed, overdelivered)
    SELECT business_center_id, day, sum(billed), sum(overdelivered) FROM spend GROUP BY 1, 2
    ON CONFLICT (business_center_id, day) DO UPDATE SET billed = d.billed + excluded.billed,
        overdelivered = d.overdelivered + excluded.overdelivered
),
custom_budgets AS (
    UPDATE balance.custom_budgets b SET spent = b.spent + c.counted
    FROM (SELECT ad_account_id, sum(counted) AS counted FROM spend WHERE counted IS NOT NULL GROUP BY 1) c
    WHERE b.ad_account_id = c.ad_account_id
),
pockets AS (
    INSERT INTO balance.pockets AS p (business_center_id, ad_account_id, pocket, amount)
    SELECT business_center_id, CASE holder WHEN 'ad_account' THEN ad_account_id ELSE '' END, pocket, sum(amount)
    FROM money WHERE pocket IS NOT NULL GROUP BY 1, 2, 3
    ON CONFLICT (business_center_id, ad_account_id, pocket) DO UPDATE SET amount = p.amount + excluded.amount
),
credit_limits AS (
    INSERT INTO balance.credit_limits AS l (business_center_id, amount)
    SELECT business_center_id, sum(amount) FROM money WHERE limit_changed GROUP BY 1
    ON CONFLICT (business_center_id) DO UPDATE SET amount = l.amount + excluded.amount
),
grants AS (
    INSERT INTO balance.grants AS g (business_center_id, ad_account_id, pocket, grant_id, remaining)
    SELECT business_center_id, CASE holder WHEN 'ad_account' THEN ad_account_id ELSE '' END, pocket, grant_id,
        sum(amount)
    FROM money WHERE grant_id IS NOT NULL AND pocket IS NOT NULL GROUP BY 1, 2, 3, 4
    ON CONFLICT (business_center_id, ad_account_id, pocket, grant_id)
        DO UPDATE SET remaining = g.remaining + excluded.remaining
),
touched AS MATERIALIZED (
    SELECT DISTINCT business_center_id, ad_account_id, block FROM money
)
INSERT INTO balance.entry_blocks (business_center_id, ad_account_id, shard, block)
SELECT DISTINCT business_center_id, '', $1, block FROM touched
UNION ALL
SELECT business_center_id, ad_account_id, $1, block FROM touched WHERE ad_account_id IS NOT NULL
ON CONFLICT DO NOTHING
