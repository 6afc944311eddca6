"""Requests in English and what they ask for: a small generation task, made of templates, with one right answer each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from experiments.data.examples import Examples, Splits
from experiments.data.states import states_of
from experiments.data.text import Tokenise, tokeniser, tokens_of
from pruning.errors import DataError

NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
HOURS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
PLACES = (
    *("Luigi's", "the Old Mill", "Blue Door", "Chez Anna", "the Red Lion", "Sakura", "Taj House", "Casa Rosa"),
    *("the Harbour Inn", "Green Fork", "Mama's Kitchen", "the Crown", "Bella Vista", "Silver Spoon", "Olive Tree"),
    *("the Garden Room", "Pasta Point", "Corner Bistro", "the Lantern", "Golden Wok", "River House", "Little Paris"),
    *("the Black Swan", "Sunset Grill", "Tapas Bar", "the Stable", "Lotus Leaf", "White Rabbit", "Fish and Co"),
    *("the Copper Pot", "Maple Lodge", "Spice Route", "the Anchor", "Noodle Bar", "Villa Verde", "the Kings Arms"),
)
TEMPLATES = (
    "Please book a table at {place} for {count} people on {day} at {hour} in the {half}.",
    "Could we have a table for {count} at {place}, {day} at {hour} in the {half}?",
    "On {day} we are {count}, so reserve something at {place} for {hour} in the {half}.",
    "I need {place} at {hour} in the {half} on {day}, there will be {count} of us.",
    "For {day}, {hour} in the {half}: {place}, {count} guests.",
    "There are {count} of us coming to {place}. Make it {hour} in the {half}, {day}.",
)


IGNORED = -100
"""A label that does not count, as PyTorch and transformers have it."""


@dataclass(frozen=True)
class Request:
    """A request, and its answer: place, people, day and hour of the day, "Sakura | 4 | Fri | 19:00"."""

    text: str
    answer: str


def bookings(
    name: str | None,
    package: str | None = None,
    gguf_file: str | None = None,
    training: int = 800,
    validation: int = 200,
    test: int = 500,
    length: int = 64,
    first_layer: int = 0,
    seed: int = 0,
) -> Splits:
    """Requests to book a table, to be turned into "place | people | day | hour", in tokens of a language model.

    Places of the test part are in no other. Columns: "input_ids", int64 [n, length], the request, an arrow, the answer
    and the end of a text; or from `first_layer` 1 on "inputs_embeds", float32 [n, length, width], what enters that
    layer; "attention_mask", int64 [n, length], 0 where padded, at the end; "labels", int64 [n, length], the tokens of
    the answer and its end at their places, -100 elsewhere.

    Args:
        name, package, gguf_file: of the model whose tokens these are, as in `experiments.models.transformers_model`.
        training, validation, test: requests in these parts, at least 1.
        length: tokens of a request with its answer.
        first_layer: layers whose work is done here, once: their states are kept in the user's cache folder.
        seed: of the draw.

    Raises:
        DataError: no tokens of the model, none that ends a text, parts that are empty, or a request that is longer.
    """
    if min(training, validation, test) < 1:
        raise DataError(f"data=bookings: training={training}, validation={validation}, test={test}: give at least 1")
    tokenise, end = tokeniser("bookings", name, package, gguf_file), ending(name, package, gguf_file)
    draw = random.Random(f"bookings {seed}")
    cut = len(PLACES) * 3 // 4
    wanted = {"train": (training, PLACES[:cut]), "validation": (validation, PLACES[:cut]), "test": (test, PLACES[cut:])}
    parts = {}
    for part, (count, places) in wanted.items():
        columns = _columns([request(draw, places) for _ in range(count)], tokenise, end, length)
        labels = columns.pop("labels")
        if first_layer:
            columns = states_of(name, package, first_layer, columns, gguf_file)
        parts[part] = Examples(**columns, labels=labels)
    return Splits(**parts)


def request(draw: random.Random, places: Sequence[str]) -> Request:
    """One request, drawn."""
    place, count = draw.choice(places), draw.choice(NUMBERS)
    day, hour, half = draw.choice(DAYS), draw.choice(HOURS), draw.choice(("morning", "evening"))
    text = draw.choice(TEMPLATES).format(place=place, count=count, day=day, hour=hour, half=half)
    clock = HOURS.index(hour) + 1 + (12 if half == "evening" else 0)
    return Request(text, f"{place} | {NUMBERS.index(count) + 2} | {day[:3]} | {clock:02d}:00")


def ending(name: str | None, package: str | None, gguf_file: str | None) -> int:
    """The token that ends a text. Raises `DataError` for a model that has none."""
    found = tokens_of("bookings", name, package, gguf_file).eos_token_id
    if found is None:
        raise DataError(f"data=bookings: {name} has no token that ends a text: take another model")
    return int(found)


def _columns(requests: Sequence[Request], tokenise: Tokenise, end: int, length: int) -> dict[str, Any]:
    ids = torch.full((len(requests), length), end)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, one in enumerate(requests):
        asked, answer = tokenise(f"{one.text}\n->"), [*tokenise(f" {one.answer}"), end]
        whole = [*asked, *answer]
        if len(whole) > length:
            raise DataError(f"data=bookings: length={length}: a request with its answer has {len(whole)} tokens")
        ids[row, : len(whole)] = torch.tensor(whole)
        mask[row, : len(whole)] = 1
        labels[row, len(asked) : len(whole)] = torch.tensor(answer)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
