"""The sans-IO machine: no Ray, clock, randomness or sockets; decisions come out as data."""
