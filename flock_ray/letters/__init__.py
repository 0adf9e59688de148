"""What `flock.dead_letters` does: pages and orders over all shards, redriving, alerts."""
