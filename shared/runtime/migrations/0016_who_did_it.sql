-- By which way a command came, and which policy decided it: that may say what the topic may name.
-- Outcomes from before have neither: nobody noted the way, and no policy refused anything.
ALTER TABLE ledger.outcomes
    ADD COLUMN via text CHECK (via IN ('api', 'topic')),
    ADD COLUMN policy_version text;
