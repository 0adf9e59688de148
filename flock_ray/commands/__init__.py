"""The commands of `flock`, by what they are about."""
