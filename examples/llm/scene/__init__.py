"""The scene that `examples.llm.detective` looks at: a shop that charges pensioners too much on Sundays."""
