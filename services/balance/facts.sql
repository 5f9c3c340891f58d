-- Folds the facts (entries without an amount) at the positions $2 … $3 of shard $1. If a later fact replaces an earlier
-- one, the fact at the highest position counts, so the order of rows does not matter.
WITH facts AS MATERIALIZED (
    SELECT position, kind, occurred_at, business_center_id, ad_account_id, campaign_id, details
    FROM ledger.entries
    WHERE shard = $1 AND position BETWEEN $2 AND $3 AND amount IS NULL
),
business_centers AS (
    INSERT INTO balance.business_centers (business_center_id, shard, currency, time_zone, finance_roles, opened_at)
    SELECT business_center_id, $1, details ->> 'currency', details ->> 'time_zone',
        (details ->> 'finance_roles')::boolean, occurred_at
    FROM facts WHERE kind = 'business_center_opened'
),
ad_accounts AS (
    INSERT INTO balance.ad_accounts
        (ad_account_id, business_center_id, shard, billing, buying_type, time_zone, owned, opened_at)
    SELECT ad_account_id, business_center_id, $1, details ->> 'billing', details ->> 'buying_type',
        details ->> 'time_zone', (details ->> 'owned')::boolean, occurred_at
    FROM facts WHERE kind = 'ad_account_opened'
),
automatic_allocation AS (
    INSERT INTO balance.automatic_allocation (business_center_id, enabled_at)
    SELECT DISTINCT business_center_id, occurred_at FROM facts WHERE kind = 'automatic_allocation_enabled'
    ON CONFLICT DO NOTHING -- A long list of accounts is spread over several entries.
),
left_out AS (
    INSERT INTO balance.left_out (business_center_id, ad_account_id, reason)
    SELECT business_center_id, ad_account_id, details ->> 'left_out'
    FROM facts WHERE kind = 'ad_account_opened' AND details ->> 'left_out' IS NOT NULL
    UNION
    SELECT business_center_id, account ->> 'ad_account_id', account ->> 'reason'
    FROM facts, json_array_elements(details -> 'left_out') AS account WHERE kind = 'automatic_allocation_enabled'
    ON CONFLICT DO NOTHING
),
budget_facts AS MATERIALIZED (
    SELECT ad_account_id, position, details ->> 'mode' AS mode, (details ->> 'amount')::numeric AS amount,
        (details ->> 'day')::date AS day, (details ->> 'changes_today')::integer AS changes_today,
        timestamptz 'epoch' + (details ->> 'started_at')::bigint * interval '1 microsecond' AS started_at,
        (details ->> 'restarted')::boolean AS restarted
    FROM facts WHERE kind IN ('budget_set', 'budget_synced', 'budget_reset')
),
last_budgets AS MATERIALIZED (
    SELECT DISTINCT ON (ad_account_id) ad_account_id, position, mode, amount, day, changes_today, started_at,
        max(position) FILTER (WHERE restarted) OVER (PARTITION BY ad_account_id) AS start_position
    FROM budget_facts ORDER BY ad_account_id, position DESC
),
budgets AS (
    INSERT INTO balance.budgets AS b (ad_account_id, mode, amount, day, changes_today, position)
    SELECT ad_account_id, mode, amount, day, changes_today, position FROM last_budgets
    ON CONFLICT (ad_account_id) DO UPDATE SET mode = excluded.mode, amount = excluded.amount, day = excluded.day,
        changes_today = excluded.changes_today, position = excluded.position
),
custom_budgets AS (
    INSERT INTO balance.custom_budgets AS c (ad_account_id, start_position, started_at, spent)
    SELECT ad_account_id, start_position, started_at, 0
    FROM last_budgets WHERE mode = 'custom' AND start_position IS NOT NULL
    ON CONFLICT (ad_account_id) DO UPDATE SET start_position = excluded.start_position,
        started_at = excluded.started_at, spent = 0
),
no_longer_custom AS (
    DELETE FROM balance.custom_budgets c USING last_budgets l
    WHERE c.ad_account_id = l.ad_account_id AND l.mode <> 'custom'
),
campaigns AS (
    INSERT INTO balance.campaigns AS c (ad_account_id, campaign_id, mode, amount, position)
    SELECT DISTINCT ON (ad_account_id, campaign_id)
        ad_account_id, campaign_id, details ->> 'mode', (details ->> 'amount')::numeric, position
    FROM facts WHERE kind = 'campaign_budget_set' ORDER BY ad_account_id, campaign_id, position DESC
    ON CONFLICT (ad_account_id, campaign_id) DO UPDATE SET mode = excluded.mode, amount = excluded.amount,
        position = excluded.position
),
largest_spends AS (
    INSERT INTO balance.largest_spends (business_center_id, position, amount)
    SELECT business_center_id, position, (details ->> 'amount')::bigint FROM facts WHERE kind = 'largest_spend_set'
),
pauses AS (
    INSERT INTO balance.pauses AS p (ad_account_id, campaign_id, causes, position)
    SELECT DISTINCT ON (ad_account_id, COALESCE(campaign_id, '')) ad_account_id, COALESCE(campaign_id, ''),
        ARRAY(SELECT json_array_elements_text(details -> 'causes')), position
    FROM facts WHERE kind IN ('pause', 'resume') ORDER BY ad_account_id, COALESCE(campaign_id, ''), position DESC
    ON CONFLICT (ad_account_id, campaign_id) DO UPDATE SET causes = excluded.causes, position = excluded.position
)
INSERT INTO balance.entry_blocks (business_center_id, ad_account_id, shard, block)
SELECT business_center_id, '', $1, position / 65536 FROM facts
UNION
SELECT business_center_id, ad_account_id, $1, position / 65536 FROM facts WHERE ad_account_id IS NOT NULL
ON CONFLICT DO NOTHING
