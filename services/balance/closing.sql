-- Closes the books of shard $1 at position $3; the previous closing was just before $2. The read model must hold the
-- entries up to $3 and none beyond it, because the closing copies its present budgets.
WITH money AS MATERIALIZED (
    SELECT business_center_id, ad_account_id, campaign_id, day, holder, pocket,
        date_bin('15 minutes', recorded_at, 'epoch') AS quarter,
        kind = 'credit_limit_change' AS limit_changed,
        pocket IS NULL AND kind <> 'forfeit' AS overdelivery,
        sum(amount) AS amount
    FROM ledger.entries
    WHERE shard = $1 AND position BETWEEN $2 AND $3 AND amount IS NOT NULL
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
),
spend AS MATERIALIZED (
    SELECT business_center_id, ad_account_id, campaign_id, day,
        COALESCE(-sum(amount) FILTER (WHERE NOT overdelivery), 0) AS billed,
        COALESCE(sum(amount) FILTER (WHERE overdelivery), 0) AS overdelivered
    FROM money WHERE day IS NOT NULL
    GROUP BY 1, 2, 3, 4
),
pocket_movements AS (
    INSERT INTO balance.pocket_movements
        (shard, closing, business_center_id, ad_account_id, pocket, quarter, amount, limit_change)
    SELECT $1, $3, business_center_id, CASE holder WHEN 'ad_account' THEN ad_account_id ELSE '' END AS held_by, pocket,
        quarter, sum(amount), COALESCE(sum(amount) FILTER (WHERE limit_changed), 0)
    FROM money WHERE pocket IS NOT NULL
    GROUP BY business_center_id, held_by, pocket, quarter
),
campaign_spend AS (
    INSERT INTO balance.campaign_spend
        (shard, closing, ad_account_id, campaign_id, day, billed, overdelivered)
    SELECT $1, $3, ad_account_id, campaign_id, day, billed, overdelivered FROM spend
),
ad_account_spend AS (
    INSERT INTO balance.ad_account_spend (shard, closing, ad_account_id, day, billed, overdelivered)
    SELECT $1, $3, ad_account_id, day, sum(billed), sum(overdelivered) FROM spend GROUP BY ad_account_id, day
    RETURNING ad_account_id
),
business_center_spend AS (
    INSERT INTO balance.business_center_spend (shard, closing, business_center_id, billed, overdelivered)
    SELECT $1, $3, business_center_id, sum(billed), sum(overdelivered) FROM spend GROUP BY business_center_id
),
budgets AS (
    INSERT INTO balance.budget_closings
        (shard, closing, ad_account_id, mode, amount, day, changes_today, start_position, started_at, spent)
    SELECT $1, $3, ad_account_id, b.mode, b.amount, b.day, b.changes_today, c.start_position, c.started_at, c.spent
    FROM (
        SELECT ad_account_id FROM ad_account_spend
        UNION
        SELECT ad_account_id FROM balance.budgets JOIN balance.ad_accounts USING (ad_account_id)
        WHERE shard = $1 AND position BETWEEN $2 AND $3
    ) AS touched
    JOIN balance.budgets b USING (ad_account_id)
    LEFT JOIN balance.custom_budgets c USING (ad_account_id)
),
campaign_budgets AS (
    INSERT INTO balance.campaign_budget_closings (shard, closing, ad_account_id, campaign_id, mode, amount)
    SELECT $1, $3, ad_account_id, campaign_id, mode, amount
    FROM balance.campaigns JOIN balance.ad_accounts USING (ad_account_id)
    WHERE shard = $1 AND position BETWEEN $2 AND $3 AND position > 0
),
pauses AS (
    INSERT INTO balance.pause_closings (shard, closing, ad_account_id, campaign_id, causes)
    SELECT DISTINCT ON (ad_account_id, COALESCE(campaign_id, ''))
        $1, $3, ad_account_id, COALESCE(campaign_id, ''),
        ARRAY(SELECT json_array_elements_text(details -> 'causes'))
    FROM ledger.entries
    WHERE shard = $1 AND position BETWEEN $2 AND $3 AND kind IN ('pause', 'resume')
    ORDER BY ad_account_id, COALESCE(campaign_id, ''), position DESC
)
INSERT INTO balance.closings (shard, position) VALUES ($1, $3)
