"""Measures flock_ray beside a featureless Ray ceiling of the same run: `python -m bench`."""
