"""Fan-outs and fan-ins on workers: user code that cuts and merges."""
