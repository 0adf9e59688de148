"""Adapters: one file per outside system, each behind a port. No Ray."""
