"""Calls to language models: limits, retries, cache, cassettes. litellm is imported in `gateway.litellm` only, late."""
