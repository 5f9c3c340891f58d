-- `delivery.signals` has as many partitions as there are shards. The partition of this number has been read back up to
-- the offset: below it, every signal was the newest of its entity or was followed by that.
ALTER TABLE signals.incarnations ADD COLUMN checked_offset bigint NOT NULL DEFAULT 0;
