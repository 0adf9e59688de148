"""Agents that think: run one with `python -m examples.llm.debate`.

With a model (`FLOCK_MODEL=openai/gpt-4.1-mini` and its API key) they run on Ray. Without one they run in this
process, in virtual time, with the answers of a cassette (`examples/llm/cassettes`).
"""
