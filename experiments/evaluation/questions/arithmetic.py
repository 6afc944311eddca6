"""Sums, differences and products, with answers to choose among or to write, and word problems of several steps."""

from __future__ import annotations

import random

from experiments.evaluation.questions.question import Question, Questions

NAMES = (
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Henry",
    "Ida",
    "Jonas",
    "Klara",
    "Leo",
    "Mia",
    "Noah",
)
THINGS = ("apples", "books", "marbles", "stamps", "cards", "coins", "pencils", "shells", "stickers", "oranges")


def addition(items: int | None = 200, shots: int = 32, seed: int = 0, digits: int = 2) -> Questions:
    """The sum of two numbers of so many digits."""
    draw = random.Random(f"addition {seed} {digits}")
    low, high = 10 ** (digits - 1), 10**digits - 1
    count = shots + (200 if items is None else items)
    pairs: dict[tuple[int, int], None] = {}
    while len(pairs) < min(count, (high - low + 1) ** 2):
        pairs[draw.randint(low, high), draw.randint(low, high)] = None
    found = tuple(Question(f"{a} + {b}", str(a + b)) for a, b in pairs)
    wordings = {
        "equation": "{text} =",
        "question": "Q: What is {text}?\nA:",
        "sentence": "The sum of {text} is",
    }
    return Questions("addition", found[shots:], found[:shots], wordings, "generated")


def word_problems(items: int | None = 200, shots: int = 16, seed: int = 0) -> Questions:
    """Stories of two or three steps of arithmetic, whose answer is a number, with the steps that lead to it."""
    draw = random.Random(f"word problems {seed}")
    found: dict[str, Question] = {}
    while len(found) < shots + (200 if items is None else items):
        question = _problem(draw)
        found[question.text] = question
    every = tuple(found.values())
    wordings = {
        "label": "Question: {text}\nAnswer:",
        "short": "Q: {text}\nA:",
        "plain": "{text}\nThe answer is",
    }
    return Questions("word_problems", every[shots:], every[:shots], wordings, "generated")


def _problem(draw: random.Random) -> Question:
    one, other = draw.sample(NAMES, 2)
    things = draw.choice(THINGS)
    have, more, times = draw.randint(3, 20), draw.randint(2, 15), draw.randint(2, 4)
    kind = draw.randrange(4)
    if kind == 0:
        gone = draw.randint(1, have + more - 1)
        story = f"{one} has {have} {things}. {one} gets {more} more and gives {gone} to {other}."
        asked = f"How many {things} does {one} have now?"
        steps = f"{have} + {more} = {have + more}. {have + more} - {gone} = {have + more - gone}."
        answer = have + more - gone
    elif kind == 1:
        story = f"{one} has {have} {things}. {other} has {times} times as many."
        asked = f"How many {things} do they have together?"
        steps = f"{have} * {times} = {have * times}. {have} + {have * times} = {have + have * times}."
        answer = have + have * times
    elif kind == 2:
        boxes = draw.randint(2, 6)
        story = f"There are {have} {things} in a box. {one} has {boxes} boxes and finds {more} more {things}."
        asked = f"How many {things} does {one} have?"
        steps = f"{boxes} * {have} = {boxes * have}. {boxes * have} + {more} = {boxes * have + more}."
        answer = boxes * have + more
    else:
        friends, each, kept = draw.randint(2, 5), draw.randint(2, 12), draw.randint(1, 9)
        total = friends * each + kept
        story = f"{one} has {total} {things}. {one} keeps {kept} and shares the others equally among {friends} friends."
        asked = f"How many {things} does each friend get?"
        steps = f"{total} - {kept} = {total - kept}. {total - kept} / {friends} = {each}."
        answer = each
    return Question(f"{story} {asked}", str(answer), reasoning=steps)
