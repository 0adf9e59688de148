"""Approvals: people decide whether something is published."""
