"""Agents that think: run one with `python -m examples.llm.debate`.

With a model (`FLOCK_MODEL=openai/gpt-4.1-mini` and its API key) they run on Ray. Without one they are
rehearsed: in this process, with answers that were written down.
"""
