"""How long calls take, one beside the other."""

from collections.abc import Callable, Mapping
from random import Random
from time import perf_counter


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each call in each of `rounds` turns, in which all run, so that a drift of the machine meets all alike.

    A turn's order is drawn (always the same way): what always followed the same other call would begin in the caches
    that this one leaves. Turns of warm-up are left out.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order, draw = list(calls), Random(0)
    for turn in range(warmup + rounds):
        draw.shuffle(order)
        for name in order:
            begun = perf_counter()
            calls[name]()
            if turn >= warmup:
                seconds[name].append(perf_counter() - begun)
    return seconds
