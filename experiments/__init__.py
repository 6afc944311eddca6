"""What runs: data, models, training, stages and records, all driven by Hydra; the library itself is `pruning`."""
