"""Questions for a language model: what is asked, what is right, and how it is worded."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One item.

    Attributes:
        text: what is asked.
        answer: what is right.
        choices: all answers to choose among, the right one too; none where the answer is written freely.
        reasoning: how one comes to the answer, in sentences, for examples that show it; "" where there is nothing to
            reason.
        references: further right answers of an open question.
    """

    text: str
    answer: str
    choices: tuple[str, ...] = ()
    reasoning: str = ""
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Questions:
    """Questions of one kind.

    Attributes:
        name: as on the command line.
        items: that are asked.
        shots: of which examples are taken; none is among `items`.
        wordings: name -> a template with `{text}`, up to where the answer begins.
        licence: of the data.
        opened: whether answers are sentences, which overlap with references and are not right or wrong.
    """

    name: str
    items: tuple[Question, ...]
    shots: tuple[Question, ...]
    wordings: Mapping[str, str]
    licence: str = "facts and rules, written for this project"
    opened: bool = False


def parted(
    found: Sequence[Question], items: int | None, shots: int, seed: int
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Items and shots, at random: the shots are the same for every number of items."""
    order = list(found)
    random.Random(f"questions {seed}").shuffle(order)
    rest = order[shots:]
    return tuple(rest[:items]), tuple(order[:shots])
