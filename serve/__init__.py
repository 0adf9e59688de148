"""HTTP front of a running flock on Ray Serve.

The folder lives at the repository root; import it as `flock_ray.serve`.
"""
