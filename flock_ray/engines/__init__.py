"""What runs an agent: plain functions, engine components, and the contract of their outputs."""
