"""Choose the units and blocks that go: granularities, budgets, latency and dead units."""
