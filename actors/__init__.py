"""Ray actors that host the core: control plane, shards, pools, archive.

The folder lives at the repository root; import it as `flock_ray.actors`.
"""
