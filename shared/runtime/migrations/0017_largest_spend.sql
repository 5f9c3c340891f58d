-- The most that one spend of a Business Center may be, each time it was set: the last one up to a position holds there.
CREATE TABLE balance.largest_spends (
    business_center_id text COLLATE "C",
    position bigint CHECK (position > 0),
    amount bigint,                          -- null: no bound any more
    PRIMARY KEY (business_center_id, position)
);
GRANT SELECT, INSERT ON balance.largest_spends TO drawdown_balance;
GRANT SELECT ON balance.largest_spends TO drawdown_api, drawdown_auditor;
