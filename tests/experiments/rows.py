"""Rows as runs write them, made by hand."""

import pandas as pd


def row(scorer="magnitude", seed=0, level=1, requested=0.1, accuracy=0.9, **more) -> dict:
    """A final level of one run, of 1,000 prunable weights."""
    config = more.pop("config", {})
    kept = more.pop("kept", round(1000 * requested))
    return {
        "format": 1,
        "run": f"{scorer}-{seed}",
        "scorer": scorer,
        "model": "lenet",
        "data": "digits",
        "seed": seed,
        "level": level,
        "round": 1,
        "rounds": 1,
        "requested_density": requested,
        "density": kept / 1000,
        "prunable": 1000,
        "kept": kept,
        "test_accuracy": accuracy,
        "dense": f"network-{seed}",
        "seconds": 1.0,
        "config": {"seed": seed, "density": [requested], **config},
        **more,
    }


def start(scorer="magnitude", seed=0, accuracy=0.97, **more) -> dict:
    """Level 0: the dense network of a run."""
    return row(scorer, seed, 0, 1.0, accuracy, **more)


def frame(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame(list(rows))
