"""Experiments driven by Hydra: data, models, tasks, training, stages, records, results. The library is `pruning`."""
