"""What an agent gets to see of the board: providers choose, and one gate behind them decides.

`flock_ray.context_provider` has the names for users; nothing in here imports Ray.
"""
