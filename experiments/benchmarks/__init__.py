"""Benchmarks: each runs beside a peer in one process, prints a table and, as its last line, one JSON object."""
