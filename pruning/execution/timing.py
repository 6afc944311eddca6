"""How long calls take, one beside the other."""

from collections.abc import Callable, Mapping
from time import perf_counter


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each call, A B A B …, so that a drift of the machine's speed meets all alike; warm-up left out."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + rounds):
        for name, call in calls.items():
            begun = perf_counter()
            call()
            if turn >= warmup:
                seconds[name].append(perf_counter() - begun)
    return seconds
