"""One process: its randomness, its locks, its terminal, and the processes beside it."""
