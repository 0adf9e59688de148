-- Who became the writer of a shard last: '<epoch> <what it says of itself>'. A version that does not say leaves it
-- as it is, and the epoch in front then no longer fits.
ALTER TABLE {schema}.shards ADD COLUMN owner text NOT NULL DEFAULT '';
