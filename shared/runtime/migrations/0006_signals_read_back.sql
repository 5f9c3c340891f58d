-- The signals of a shard below this offset have been read back: each was followed by the newest of its entity.
ALTER TABLE signals.incarnations ADD COLUMN checked_offset bigint NOT NULL DEFAULT 0;
