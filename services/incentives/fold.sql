-- Adds up the cash spend of the positions $2 … $3 of shard $1, by the quarter of an hour of the spend. Drawn amounts are
-- negative and returned amounts positive, so cash spend is the sum with the opposite sign.
INSERT INTO incentives.cash_spend AS c (ad_account_id, bucket, amount)
SELECT ad_account_id,
    date_bin('15 minutes', CASE kind
        WHEN 'reversal' THEN timestamptz 'epoch' + (details ->> 'spend_occurred_at')::bigint * interval '1 microsecond'
        ELSE occurred_at END, 'epoch'),
    -sum(amount)
FROM ledger.entries
WHERE shard = $1 AND position BETWEEN $2 AND $3 AND day IS NOT NULL AND pocket IN ('cash', 'credit', 'credit_line')
GROUP BY 1, 2
ON CONFLICT (ad_account_id, bucket) DO UPDATE SET amount = c.amount + excluded.amount
