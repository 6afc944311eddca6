"""Fields of configurations in rows: which of them make another method."""

BOOKKEEPING = frozenset(
    {
        *(
            "seed",
            "density",
            "folder",
            "store",
            "threads",
            "device",
            "name",
            "tracker",
            "experiment",
            "method",
            "progress",
        ),
        *("checkpoint", "controls", "latency", "objective"),
    }
)
"""Top-level keys of a configuration that do not make another method: which repetition, which densities, where."""


PRUNING = frozenset(
    {
        "scorer",
        "scoring",
        "when",
        "granularity",
        "allocation",
        "calibration",
        "schedule",
        "compensate",
        "dynamic",
        "adaptation",
        "distillation",
        "execution",
        "recovery",
        "include",
        "exclude",
    }
)
"""Top-level keys that act after the dense network is trained. A key that is in neither set is taken to shape both."""
